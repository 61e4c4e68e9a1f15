"""Engines: compiled stand-ins for parts of a model, with the same inputs, outputs and meaning."""
