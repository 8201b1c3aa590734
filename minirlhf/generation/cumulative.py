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
BELOW_ONE = 1 - 2.0**-50  # so that a uniform near 1 still finds a number above 0


def first_exceeding(probs: Tensor, uniforms: Tensor) -> Tensor:
    """[B, V] probabilities, [B] uniforms in [0, 1) -> [B]: the first index whose cumulative probability exceeds the
    uniform. The probabilities need not sum to 1. An index of probability 0 is never the answer.
    """
    V = probs.shape[-1]
    whole = functional.pad(probs, (0, -V % BLOCK)) if V % BLOCK else probs  # a pad of 0 columns would copy too
    blocks = whole.unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1)
    block, threshold, ends = _search(sums, uniforms[:, None])
    # the share of the block's own sum that lies below the threshold
    share = ((threshold - ends.gather(1, block)) / sums.gather(1, block) + 1).clamp_(0, 1)
    token, _, _ = _search(blocks.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1), share)
    return (block * BLOCK + token).clamp_(max=V - 1).squeeze(1)


def _search(numbers: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, n] numbers >= 0, [B, 1] shares of their sum -> (the first index whose cumulative number exceeds the share
    [B, 1], the share as a number [B, 1], the cumulative numbers [B, n]).
    """
    ends = numbers.cumsum(-1, dtype=wide_dtype(numbers))
    total = ends[:, -1:]
    threshold = torch.minimum(shares * total, BELOW_ONE * total)
    # broken numbers have no such index: the last one
    return torch.searchsorted(ends, threshold, right=True).clamp_(max=numbers.shape[-1] - 1), threshold, ends
