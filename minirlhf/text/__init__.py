"""Tokenizer and chat layout."""

from minirlhf.text.chat import render_chat
from minirlhf.text.tokenizer import Tokenizer

__all__ = ["Tokenizer", "render_chat"]
