"""Segment and Caption Anything over image corpora."""
