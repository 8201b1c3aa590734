"""Tokenizers, chat layouts, and streams of text."""

from minirlhf.lazy import lazy
from minirlhf.text.tokenizer import Tokenizer

# Names of leaves. Their files load on first use, so the core does not need them.
LEAVES = {
    "minirlhf.text.chat": "render_chat",
    "minirlhf.text.streaming": "TextStream",
    "minirlhf.text.checkpoint_tokenizer.layouts": "LAYOUTS",
    "minirlhf.text.checkpoint_tokenizer.template": "ChatTemplate",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
