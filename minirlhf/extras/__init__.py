"""Models beyond the decoder. Nothing imports this room."""
