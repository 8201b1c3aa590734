"""Attention in blocks of queries equals torch's, in values and gradients, whatever the heads and the length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from minirlhf.model import attention, block_attention
from minirlhf.model.block_attention import BlockAttention, suits
from minirlhf.model.context import AttentionInputs


def heads_of(B, H, K, T, E, dtype=torch.float64, factor=1.0):
    """q, k, v as `Attention` gives them, [B, T, heads, E] transposed; and the gradient of the output."""
    q, k, v, upstream = (factor * torch.randn(B, T, heads, E, dtype=dtype).transpose(1, 2) for heads in (H, K, K, H))
    return [x.requires_grad_() for x in (q, k, v)], upstream


def results(function, inputs, upstream):
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, upstream)


def plain(q, k, v, scale=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


@settings(max_examples=30)
@given(
    st.integers(1, 5),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)]),
    st.integers(1, 80),
    st.sampled_from([4, 10]),
    st.sampled_from([None, 0.3]),
    st.integers(50, 5000),
)
def test_values_and_gradients_are_those_of_torch(B, heads, T, E, scale, numbers):
    inputs, upstream = heads_of(B, *heads, T, E)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_attention, "NUMBERS", numbers)  # scores at a time: some rows, or one
        found = results(lambda *x: BlockAttention.apply(*x, scale), inputs, upstream)
    wanted = results(lambda *x: plain(*x, scale), inputs, upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_large_scores_neither_overflow_nor_vanish():
    """The largest score of a row may be that of a token ahead, which counts for nothing."""
    torch.manual_seed(0)
    inputs, upstream = heads_of(2, 4, 2, 70, 8, torch.float32, factor=30.0)
    found = results(lambda *x: BlockAttention.apply(*x, None), inputs, upstream)
    wanted = results(plain, [x.detach().double().requires_grad_() for x in inputs], upstream.double())
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y.float(), rtol=2e-4, atol=2e-3 * y.abs().max().item())


def test_the_backward_pass_is_in_fp32_under_autocast_too():
    torch.manual_seed(1)
    inputs, upstream = heads_of(2, 4, 2, 70, 8, torch.float32)
    wanted = results(plain, inputs, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            out = BlockAttention.apply(*inputs, None)
        found = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(found, wanted[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_takes_it_for_long_rows(monkeypatch, dtype):
    """In bf16 too, where attention is computed in fp32."""
    taken = []
    monkeypatch.setattr(block_attention, "LEAST", 10_000)
    monkeypatch.setattr(block_attention, "wins", lambda: bool(taken.append(1)) or True)
    inputs, upstream = heads_of(2, 4, 2, 100, 8, dtype)
    settings_of_layer = AttentionInputs(None, None, None, None, None)

    def attended(*x):
        return attention.attend(*x, settings_of_layer, None, None)

    found = results(attended, inputs, upstream)
    monkeypatch.setattr(block_attention, "wins", lambda: False)
    assert taken
    torch.testing.assert_close(found, results(attended, inputs, upstream))


def test_other_attention_stays_torch_s(monkeypatch):
    monkeypatch.setattr(block_attention, "wins", lambda: True)
    q, k = torch.empty(8, 8, 256, 4), torch.empty(8, 2, 256, 4)
    assert suits(q, k, None)
    assert not suits(q, k, torch.ones(256, 256, dtype=torch.bool))
    assert not suits(q[:, :, :1], k, None)  # a decode step
    assert not suits(q[:1], k[:1], None)  # little work
    assert not suits(q.double(), k.double(), None) and not suits(q.to("meta"), k.to("meta"), None)
