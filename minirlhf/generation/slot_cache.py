"""Keys and values of the slots, laid out for decoding.

With rotary positions, the two numbers of a pair stand side by side: they are one complex number, and a rotation is one
product. Keys and values have the same places, so one copy stores those of a token. All columns of a head stand
together, so attention is a batch of products, one for each slot and head.

L layers, B slots, S columns, K key-value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minirlhf.model.cache import KVCache
from minirlhf.model.config import ModelConfig


def pairs_first(config: ModelConfig) -> Tensor:
    """[E]: the order of a head's numbers. rope.py pairs the numbers i and i + E / 2."""
    order = torch.arange(config.head_width)
    return order.view(2, -1).T.flatten() if config.positions == "rope" else order


class SlotCache:
    """Memory: 2 L B K S E numbers. `width` is the number of columns in use, an upper bound of the slots' lengths."""

    def __init__(
        self, config: ModelConfig, slots: int, columns: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = config.num_hidden_layers, 2, slots, config.num_key_value_heads, columns, config.head_width
        self.numbers = torch.zeros(shape, device=device, dtype=dtype)  # [L, keys and values, B, K, S, E]
        self.order, self.columns, self.width = pairs_first(config).to(device), columns, 0

    def adopt(self, slots: Sequence[int], source: KVCache) -> None:
        """Copy what a transformer has read: row k of the source goes to slot `slots[k]`."""
        width = source.width
        self.numbers[:, 0, slots, :, :width] = source.keys_LBSKE[:, :, :width, :, self.order].transpose(2, 3)
        self.numbers[:, 1, slots, :, :width] = source.values_LBSKE[:, :, :width].transpose(2, 3)
        self.width = max(self.width, width)

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Copy from slots to other slots."""
        self.numbers[:, :, to, :, : self.width] = self.numbers[:, :, source, :, : self.width]

    def grow(self, columns: int) -> None:
        """The columns that are held keep their numbers."""
        shape = list(self.numbers.shape)
        larger = self.numbers.new_zeros([*shape[:4], columns, shape[5]])
        larger[:, :, :, :, : self.columns] = self.numbers
        self.numbers, self.columns = larger, columns
