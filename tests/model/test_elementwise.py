"""Steps of a block on a CPU against the plain expressions: values, gradients, and what they keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.model import ModelConfig
from minirlhf.model.config import FULL
from minirlhf.model.elementwise import SwiGLU
from minirlhf.model.rope import rope_tables, rotate
from minirlhf.model.transformer import MLP

DTYPES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.02}


def plain_rotation(x, cos, sin):
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def compare(ours, plain, inputs, bound):
    """Values and gradients of the two functions of `inputs`."""
    results = []
    for function in (ours, plain):
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = function(*leaves)
        upstream = torch.linspace(-2, 1, y.numel()).to(y.dtype).view_as(y)
        results.append((y.detach(), *torch.autograd.grad(y, leaves, upstream)))
    assert_close(*results, rtol=bound, atol=bound)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 3),
    pairs=st.integers(1, 8),
    dtype=st.sampled_from(list(DTYPES)),
    part=st.booleans(),
    seed=st.integers(0, 99),
)
def test_queries_and_keys_turn_as_the_formula_says(rows, tokens, heads, pairs, dtype, part, seed):
    torch.manual_seed(seed)
    config = ModelConfig(hidden_size=2 * pairs * 4, num_attention_heads=4, head_dim=2 * pairs)
    cos, sin = (t[:tokens, None] for t in rope_tables(config, FULL, tokens, torch.device("cpu")))
    whole = torch.randn(rows, tokens, heads + 2, 2 * pairs).to(dtype)
    x = whole[:, :, :heads] if part else whole  # a part of one product is not contiguous
    compare(lambda x: rotate(x, cos, sin), lambda x: plain_rotation(x, cos, sin), [x], DTYPES[dtype])


@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from(list(DTYPES)),
    part=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_gated_activation_is_that_of_the_formula(shape, dtype, part, seed):
    torch.manual_seed(seed)
    if part:
        gate, up = torch.randn(*shape[:-1], 2 * shape[-1]).mul(3).to(dtype).chunk(2, dim=-1)
    else:
        gate, up = torch.randn(2, *shape).mul(3).to(dtype)
    compare(SwiGLU.apply, lambda gate, up: F.silu(gate) * up, [gate, up], DTYPES[dtype])


def test_a_gated_mlp_keeps_three_products_and_its_input():
    config, kept = ModelConfig(hidden_size=8, intermediate_size=24), {}
    mlp = MLP(config, 24)
    with saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        mlp(torch.randn(5, 8, requires_grad=True))
    weights = {p.data_ptr() for p in mlp.parameters()}
    assert sorted(x.numel() for address, x in kept.items() if address not in weights) == [40, 120, 120, 120]


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_a_compiler_sees_the_plain_expressions(act):
    config, graphs = ModelConfig(hidden_size=8, intermediate_size=24, hidden_act=act), []
    mlp, x = MLP(config, 24), torch.randn(1, 5, 8)
    cos, sin = (t[:5, None] for t in rope_tables(ModelConfig(), FULL, 5, torch.device("cpu")))
    heads = torch.randn(1, 5, 2, cos.shape[-1])

    def keep(module, inputs):
        graphs.append(module.code)
        return module.forward

    def both(x, heads):
        return mlp(x), rotate(heads, cos, sin)

    assert_close(torch.compile(both, backend=keep, fullgraph=True)(x, heads), both(x, heads))
    assert act[:4] in graphs[0] and "addcmul" in graphs[0] and "autograd_function" not in graphs[0].lower()
