"""Stage one of two towers: a small SAM on composed scenes."""
