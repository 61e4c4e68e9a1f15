"""Worker processes and what has them work; units and items are opaque names here."""
