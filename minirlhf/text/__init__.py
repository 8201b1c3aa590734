"""Tokenizers, chat layouts, and streams of text."""

import importlib
from typing import Any

from minirlhf.text.chat import render_chat
from minirlhf.text.tokenizer import Tokenizer

# Names of leaves. Their files load on first use, so the core does not need them.
LEAVES = {
    "minirlhf.text.streaming": "TextStream",
    "minirlhf.text.checkpoint_tokenizer.layouts": "LAYOUTS",
    "minirlhf.text.checkpoint_tokenizer.template": "ChatTemplate",
}


def __getattr__(name: str) -> Any:
    for module, names in LEAVES.items():
        if name in names.split():
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *" ".join(LEAVES.values()).split()])
