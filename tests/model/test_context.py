"""Positions and masks of a forward: with and without a cache, with and without a window."""

import pytest
import torch

from minirlhf.model import KVCache, ModelConfig, Transformer
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.context import forward_context
from minirlhf.model.rope import rope_tables

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


LONG = {"max_position_embeddings": 3000, "head_dim": 6}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_type": "linear", "rope_factor": 2.0},
        {"rope_type": "llama3", "rope_factor": 8.0, "rope_original_context": 512},
        {"rope_type": "yarn", "rope_factor": 4.0, "rope_original_context": 512},
        {"rope_type": "dynamic", "rope_factor": 2.0, "rope_original_context": 3000},
        {"rope_local_theta": 100.0, "layer_types": (FULL, SLIDING), "sliding_window": 8},
    ],
)
def test_position_tables_grow_by_doubling_and_keep_their_rows(changes):
    config, cpu = ModelConfig(**LONG | changes), torch.device("cpu")
    for layer_type in {*config.layer_types} or {FULL}:
        whole = rope_tables(config, layer_type, 3000, cpu)
        for columns, rows in [(1, 1024), (1024, 1024), (1025, 2048), (2048, 2048), (2049, 3000), (3000, 3000)]:
            tables = rope_tables(config, layer_type, columns, cpu)
            assert [len(table) for table in tables] == [rows, rows]
            assert all(torch.equal(table, full[:rows]) for table, full in zip(tables, whole, strict=True))


def test_a_context_of_two_billion_tokens_costs_nothing():
    config = ModelConfig(max_position_embeddings=2**31)
    context = forward_context(config, torch.zeros(1, 5, dtype=torch.int64), None, None)
    assert context.inputs[FULL].cos.shape == (1, 5, 1, config.head_width)


def test_tables_made_in_inference_mode_serve_training():
    model = Transformer(ModelConfig(vocab_size=8, max_position_embeddings=2**20 + 1))  # no other test has these tables
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None
