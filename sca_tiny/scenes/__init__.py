"""Composed scenes of pictograms, with exact masks and true sentences."""
