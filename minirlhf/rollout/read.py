"""Numbers of given tokens, read in micro-batches without gradient: log-probs, entropy, values.

B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minirlhf.data.batches import microbatches


@torch.no_grad()
def read(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    lengths: Sequence[int],
    max_tokens: int,
    units: Sequence[int] | None = None,
) -> Tensor:
    """Call `function` on a few rows at a time and join its answers in the order of the rows.

        ref_logps = read(lambda ids, mask: ref_policy(ids, mask).logps, (input_ids, attention_mask), lengths, 16_384)

    Args:
        function:   takes the same rows of each tensor, cut to the longest of these rows, [b, t]. It returns one number
                    per token [b, t] or one number per row [b].
        tensors:    [B, T] each.
        lengths:    the number of real tokens in each of the B rows; B may be 0.
        max_tokens: a micro-batch is padded to at most this many tokens; a single row may have more.
        units:      rows that stay together, see `microbatches`.
    Returns: [B, T] with 0 beyond the longest row of a micro-batch, or [B].
    """
    result = None if lengths else torch.zeros(tensors[0].shape, device=tensors[0].device)
    for rows in microbatches(lengths, max_tokens, units):
        index, width = torch.tensor(rows, device=tensors[0].device), max(lengths[row] for row in rows)
        answer = function(*(tensor[index, :width] for tensor in tensors))
        if result is None:
            result = answer.new_zeros(tensors[0].shape if answer.dim() == 2 else len(lengths))
        if answer.dim() == 2:
            result[index, :width] = answer
        else:
            result[index] = answer
    return result
