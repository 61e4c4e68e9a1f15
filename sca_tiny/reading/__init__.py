"""The language model learns to read SAM's embedding."""
