"""Images in, records out."""
