"""Inverse sampling: the token at which the cumulative probability passes a uniform number. B rows, V vocabulary.

A running sum in float64 over a vocabulary of 152,000 takes three times as long as its softmax. So the uniform first
chooses a block of tokens by the blocks' sums, and then a token of this block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from minirlhf.losses.masking import wide_dtype

BLOCK = 64  # tokens


def first_exceeding(probs: Tensor, uniforms: Tensor) -> Tensor:
    """[B, V] probabilities, [B] uniforms in [0, 1) -> [B]: the first index whose cumulative probability exceeds the
    uniform. The probabilities need not sum to 1. An index of probability 0 is never the answer.
    """
    blocks = functional.pad(probs, (0, -probs.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    block, rest = _search(blocks.sum(-1), uniforms)
    token, _ = _search(blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK)).squeeze(1), rest)
    return (block * BLOCK + token).clamp(max=probs.shape[-1] - 1)


def _search(numbers: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative number exceeds the share of the sum -> (index, the part of its number below)."""
    ends = numbers.to(wide_dtype(numbers)).cumsum(-1)
    total = ends[:, -1:]
    # below the total, so that a share near 1 still finds a number above 0
    threshold = torch.minimum(shares.to(ends.dtype)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(ends, threshold, right=True).clamp(max=numbers.shape[-1] - 1)
    own = numbers.gather(-1, index)
    rest = ((threshold - (ends.gather(-1, index) - own)) / own).clamp(0, 1)
    return index.squeeze(-1), rest.squeeze(-1)
