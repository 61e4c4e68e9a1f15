"""Composed scenes: openly licensed pictograms on backgrounds, with exact masks and captions."""
