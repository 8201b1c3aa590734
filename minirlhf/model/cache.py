"""What a transformer has read: keys and values, by column."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from minirlhf.model.config import ModelConfig


class KVCache:
    """Keys and values of what has been read: column = position, so ragged rows need no left padding.

    Memory: 2 * layers * B * size * K * E numbers.
    """

    def __init__(
        self, config: ModelConfig, batch: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (config.num_hidden_layers, batch, size, config.num_key_value_heads, config.head_width)
        self.keys_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # real tokens read, per row
        self.width = 0  # columns in use: an upper bound of lengths that the host knows without asking the device

    def write(self, layer: int, positions_BT: Tensor, keys_BTKE: Tensor, values_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store at the given columns -> all keys and values in use, [B, S, K, E]."""
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        self.keys_LBSKE[layer, rows, positions_BT] = keys_BTKE.to(self.keys_LBSKE.dtype)
        self.values_LBSKE[layer, rows, positions_BT] = values_BTKE.to(self.values_LBSKE.dtype)
        return self.keys_LBSKE[layer, :, : self.width], self.values_LBSKE[layer, :, : self.width]

    def halves(self) -> tuple[KVCache, KVCache]:
        """The first and the second half of the layers, in the same storage: for two models that read as one."""
        middle = len(self.keys_LBSKE) // 2
        halves = []
        for layers in (slice(0, middle), slice(middle, None)):
            half = copy.copy(self)
            half.keys_LBSKE, half.values_LBSKE = self.keys_LBSKE[layers], self.values_LBSKE[layers]
            halves.append(half)
        return halves[0], halves[1]

    def adopt(self, rows: list[int], part: KVCache, parts: Tensor) -> None:
        """Take over what a smaller cache has read: row `rows[k]` is its row `parts[k]`."""
        self.keys_LBSKE[:, rows, : part.width] = part.keys_LBSKE[:, parts, : part.width]
        self.values_LBSKE[:, rows, : part.width] = part.values_LBSKE[:, parts, : part.width]
        self.lengths[rows] = part.lengths[parts]
        self.width = max(self.width, part.width)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (the unfinished ones)."""
        self.keys_LBSKE, self.values_LBSKE = self.keys_LBSKE[:, rows], self.values_LBSKE[:, rows]
        self.lengths = self.lengths[rows]
