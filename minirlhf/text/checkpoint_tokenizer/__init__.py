"""Tokenizers of checkpoints: their folders, chat templates in a sandbox, built-in chat layouts."""
