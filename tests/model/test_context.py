"""Positions and masks of a forward: with and without a cache, with and without a window."""

import torch

from minirlhf.model import KVCache, ModelConfig
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.context import forward_context

WINDOW = ModelConfig(num_hidden_layers=2, layer_types=(FULL, SLIDING), sliding_window=2)


def test_without_a_cache_only_a_short_window_needs_a_mask():
    context = forward_context(WINDOW, torch.zeros(3, 4, dtype=torch.int64), None, None)
    assert context.positions.tolist() == [[0, 1, 2, 3]] and context.from_start
    assert context.inputs[FULL].visible is None
    # a token sees itself and the token before it
    visible = [[True, False, False, False], [True, True, False, False], [False, True, True, False]]
    assert context.inputs[SLIDING].visible[0, 0].tolist() == [*visible, [False, False, True, True]]
    short = forward_context(WINDOW, torch.zeros(3, 2, dtype=torch.int64), None, None)
    assert short.inputs[SLIDING].visible is None  # the window holds the whole text


def test_each_row_continues_after_its_own_tokens():
    cache = KVCache(WINDOW, 2, 8, torch.device("cpu"))
    first = forward_context(WINDOW, torch.zeros(2, 3, dtype=torch.int64), None, cache)
    assert first.from_start and first.positions.tolist() == [[0, 1, 2]] * 2 and cache.width == 3
    cache.lengths = torch.tensor([3, 1])  # the second row has 1 real token and 2 columns of padding
    context = forward_context(WINDOW, torch.zeros(2, 1, dtype=torch.int64), None, cache)
    assert not context.from_start and context.positions.tolist() == [[3], [1]] and cache.width == 4
    assert context.inputs[FULL].visible[:, 0, 0].tolist() == [[True] * 4, [True, True, False, False]]
    assert context.inputs[SLIDING].visible[:, 0, 0].tolist() == [[False, False, True, True], [True, True, False, False]]
    assert context.inputs[FULL].cos.shape == (2, 1, 1, WINDOW.head_width)


def test_without_layer_types_all_layers_are_full():
    assert forward_context(ModelConfig(), torch.zeros(1, 2, dtype=torch.int64), None, None).inputs.keys() == {FULL}
