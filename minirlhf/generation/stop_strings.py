"""Stop strings: texts that end a completion. B rows, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.text.tokenizer import Tokenizer


def completes_stop_string(ids: Tensor, stop_strings: tuple[str, ...], tokenizer: Tokenizer) -> Tensor:
    """[B] bool: True if the text of the last tokens of a completion, ids [B, T], has one of the stop strings.

    Every token has at least one byte, so the last n tokens hold a stop string of n bytes. The 3 tokens before may hold
    the first bytes of a character.
    """
    window = max(len(stop.encode()) for stop in stop_strings) + 3
    texts = tokenizer.decode_completions(ids[:, -window:].tolist())
    return torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=ids.device)
