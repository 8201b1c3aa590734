"""Tokenizer and chat layout."""

from minirlhf.text.chat import render_chat
from minirlhf.text.layouts import LAYOUTS
from minirlhf.text.streaming import TextStream
from minirlhf.text.template import ChatTemplate
from minirlhf.text.tokenizer import Tokenizer

__all__ = ["LAYOUTS", "ChatTemplate", "TextStream", "Tokenizer", "render_chat"]
