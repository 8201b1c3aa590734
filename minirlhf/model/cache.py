"""Keys and values of the tokens that a transformer has read."""

from __future__ import annotations

import torch
from torch import Tensor

from minirlhf.model.config import ModelConfig


class KVCache:
    """Keys and values, stored at column = position, so rows of different lengths need no padding on the left.

    L layers, B rows, S columns, K key-value heads, E head width. Memory: 2 L B S K E numbers.
    """

    def __init__(
        self, config: ModelConfig, batch: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (config.num_hidden_layers, batch, size, config.num_key_value_heads, config.head_width)
        self.keys_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBSKE = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # real tokens stored, per row
        self.width = 0  # columns in use: an upper bound of lengths, known without asking the device

    def write(self, layer: int, positions_BT: Tensor, keys_BTKE: Tensor, values_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values at their positions -> all keys and values in use, [B, width, K, E]."""
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        self.keys_LBSKE[layer, rows, positions_BT] = keys_BTKE.to(self.keys_LBSKE.dtype)
        self.values_LBSKE[layer, rows, positions_BT] = values_BTKE.to(self.values_LBSKE.dtype)
        return self.keys_LBSKE[layer, :, : self.width], self.values_LBSKE[layer, :, : self.width]

    def adopt(self, rows: list[int], source: KVCache, source_rows: Tensor) -> None:
        """Copy from a cache of fewer columns: row `source_rows[k]` of the source becomes row `rows[k]`."""
        self.keys_LBSKE[:, rows, : source.width] = source.keys_LBSKE[:, source_rows, : source.width]
        self.values_LBSKE[:, rows, : source.width] = source.values_LBSKE[:, source_rows, : source.width]
        self.lengths[rows] = source.lengths[source_rows]
        self.width = max(self.width, source.width)

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, such as the rows of unfinished completions."""
        self.keys_LBSKE, self.values_LBSKE = self.keys_LBSKE[:, rows], self.values_LBSKE[:, rows]
        self.lengths = self.lengths[rows]
