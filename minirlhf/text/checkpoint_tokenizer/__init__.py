"""Tokenizers of checkpoints: special tokens, chat templates in a sandbox, built-in chat layouts."""
