"""The bundled model: a small SAM, a small language model, and SCA between them, on scenes."""
