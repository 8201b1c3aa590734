"""attend() computes softmax(scale q k) v over the visible columns; soft cap and norms by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.model import ModelConfig
from minirlhf.model.attention import attend
from minirlhf.model.context import AttentionInputs
from minirlhf.model.norms import norm, softcap


def inputs(visible=None):
    return AttentionInputs(torch.ones(()), torch.zeros(()), visible)


@pytest.mark.parametrize(
    ("scale", "cap", "scores"), [(None, None, [0.0, math.log(3)]), (2.0, 1.0, [0.0, math.tanh(2 * math.log(3))])]
)
def test_attention_by_hand(scale, cap, scores):
    # E = 1, so the default scale is 1. Keys are 0 and ln 3, values 8 and 4, queries 1. Token 0 sees itself only: 8.
    # Token 1 has scores 0 and ln 3, so weights 1/4 and 3/4: 5. With scale 2 and cap 1 its scores are 0, tanh(2 ln 3).
    q, k, v = torch.ones(1, 1, 2, 1), torch.tensor([0.0, math.log(3)]), torch.tensor([8.0, 4.0])
    out = attend(q, k.view(1, 1, 2, 1), v.view(1, 1, 2, 1), inputs(), scale, cap).flatten()
    weights = torch.tensor(scores).softmax(0)
    assert_close(out, torch.stack((v[0], weights @ v)))
    if cap is None:
        assert out[1].item() == pytest.approx(5.0)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_a_causal_mask_and_plain_causal_attention_are_the_same(cap):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 4, generator=generator) for heads in (6, 2, 2))  # groups of 3 query heads
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    assert_close(attend(q, k, v, inputs(mask), None, cap), attend(q, k, v, inputs(), None, cap))


def test_a_cap_bounds_attention_scores_by_hand():
    # scores 0 and 3 with cap 2: 2 tanh(3 / 2) = 1.810297, so the second weight is 1 / (1 + exp(-1.810297)) = 0.859398
    q, k, v = torch.ones(1, 1, 2, 1), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0])
    out = attend(q, k.view(1, 1, 2, 1), v.view(1, 1, 2, 1), inputs(), 1.0, 2.0).flatten()
    assert_close(out, torch.tensor([0.0, 0.859398]))


def test_a_very_large_cap_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 4, generator=generator) for heads in (6, 2, 2))
    assert_close(attend(q, k, v, inputs(), None, 1e4), attend(q, k, v, inputs(), None, None))


def test_softcap_is_the_identity_near_0_and_never_passes_the_cap():
    # 2 tanh(2 / 2) = 1.523188
    assert_close(softcap(torch.tensor([2.0]), 2.0), torch.tensor([1.523188]))
    # 2 tanh(3 / 2) = 1.810297, 3 tanh(2 / 3) = 1.748349: number and cap have different parts
    assert_close(softcap(torch.tensor([3.0]), 2.0), torch.tensor([1.810297]))
    assert_close(softcap(torch.tensor([2.0]), 3.0), torch.tensor([1.748349]))
    x = torch.tensor([-1e9, -1e-4, 0.0, 1e-4, 1e9])
    assert_close(softcap(x, 3.0), torch.tensor([-3.0, -1e-4, 0.0, 1e-4, 3.0]))
    assert softcap(x, None) is x


def test_norms_by_hand():
    # x = (3, 4): mean square 12.5, root 3.535534; mean 3.5, deviation 0.5
    x = torch.tensor([3.0, 4.0])
    for name, weight, wanted in (
        ("rms", [1.0, 2.0], [0.848528, 2 * 1.131371]),
        ("rms_plus_one", [0.0, 1.0], [0.848528, 2 * 1.131371]),
        ("layer", [1.0, 2.0], [-1.0, 2.0]),
    ):
        layer = norm(ModelConfig(norm=name, rms_norm_eps=1e-9), width=2)
        layer.weight.data = torch.tensor(weight)
        assert_close(layer(x), torch.tensor(wanted))
    assert isinstance(norm(ModelConfig(), used=False), nn.Identity)
    assert norm(ModelConfig()).weight.shape == (64,)


@pytest.mark.parametrize("mode", ["training", "reading", "sampling"])
def test_in_bf16_on_a_cpu_attention_is_computed_in_fp32_unless_it_samples(monkeypatch, mode):
    # the backward pass of bf16 attention takes more time than all products of a training step
    seen, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *a, **k: seen.append(q.dtype) or plain(q, *a, **k))
    torch.manual_seed(0)
    leaves = [torch.randn(2, heads, 5, 8).requires_grad_(mode == "training") for heads in (4, 2, 2)]
    q, k, v = (x.bfloat16() for x in leaves)
    with torch.inference_mode(mode == "sampling"), torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, inputs(), None, None)
    assert out.dtype == torch.bfloat16 and seen == [torch.bfloat16 if mode == "sampling" else torch.float32]
    expected = attend(*(x.detach().float() for x in (q, k, v)), inputs(), None, None)
    assert_close(out.float(), expected, rtol=0.02, atol=0.01)
    if mode == "training":
        assert_close(out, expected.bfloat16())
        out.sum().backward()
        assert all(x.grad.isfinite().all() for x in leaves)
