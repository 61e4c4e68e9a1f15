"""Regions to sentences."""
