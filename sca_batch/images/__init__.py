"""Bytes to pixels: what may be read, fetching it, decoding it."""
