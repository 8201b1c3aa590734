"""RMSNorm as one autograd step against torch's: values, gradients, kinds of numbers, and what it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.model.rms_norm import PlusOneRMSNorm, RMSNorm, rms_norm


def with_gradients(norm, x, weight, upstream):
    """-> the values and the gradients of x and weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = norm(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), upstream)


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([1e-6, 0.1]),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_torch(shape, width, dtype, eps, turned, seed):
    torch.manual_seed(seed)
    x, upstream = torch.randn(2, *shape, width, dtype=dtype)
    weight = torch.randn(width, dtype=dtype)
    if turned and shape:  # heads and tokens change places: not contiguous
        x = x.transpose(0, -2)
        upstream = upstream.transpose(0, -2)
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    ours = with_gradients(lambda x, w: rms_norm(x, w, eps), x, weight, upstream)
    plain = with_gradients(lambda x, w: F.rms_norm(x, (width,), w, eps), x, weight, upstream)
    assert_close(ours, plain, rtol=bound, atol=bound)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_bf16_is_computed_in_fp32_and_stays_bf16(weights):
    x, upstream = torch.randn(2, 6, 32).bfloat16()
    weight = torch.randn(32).to(weights)
    ours = with_gradients(lambda x, w: rms_norm(x, w, 1e-6), x, weight, upstream)
    plain = with_gradients(lambda x, w: F.rms_norm(x, (32,), w, 1e-6), x.float(), weight.float(), upstream.float())
    assert [a.dtype for a in ours] == [torch.bfloat16, torch.bfloat16, weights]
    assert_close(ours, tuple(b.to(a.dtype) for a, b in zip(ours, plain, strict=True)))


def test_the_place_of_the_weight_in_memory_changes_no_bit():
    """A run that goes on reads its weights from a file, where they stand at any place."""
    torch.manual_seed(0)
    for width in (16, 20, 24, 32):
        x, weight, upstream = torch.randn(17, width), torch.randn(width), torch.randn(17, width)
        results = []
        for start in (0, 1, 2, 3, 5, 9):
            placed = torch.empty(start + width)[start:].copy_(weight).requires_grad_()
            inputs = x.clone().requires_grad_(), placed
            out = rms_norm(*inputs, 1e-6)
            results.append((out, *torch.autograd.grad(out, inputs, upstream)))
        assert all(torch.equal(a, b) for found in results for a, b in zip(found, results[0], strict=True))


def test_gradients_that_nobody_asks_for_are_not_computed():
    x, weight = torch.randn(3, 8), torch.randn(8)
    of_x = rms_norm(x.requires_grad_(), weight, 1e-6)
    assert of_x.grad_fn.apply(torch.ones(3, 8))[1] is None
    of_weight = rms_norm(x.detach(), weight.requires_grad_(), 1e-6)
    assert of_weight.grad_fn.apply(torch.ones(3, 8))[0] is None


def test_it_keeps_its_input_and_a_number_a_row():
    kept, norm = [], RMSNorm(8, 1e-6)
    with saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        norm(x := torch.randn(5, 8, requires_grad=True))
    assert {t.data_ptr() for t in kept} > {x.data_ptr(), norm.weight.data_ptr()}
    assert sorted(t.numel() for t in kept) == [5, 8, 40]


@pytest.mark.parametrize("kind", [RMSNorm, PlusOneRMSNorm])
def test_a_compiler_sees_the_function_of_torch(kind):
    norm, x, graphs = kind(8, 1e-6), torch.randn(5, 8), []

    def keep(module, inputs):
        graphs.append(module.code)
        return module.forward

    assert_close(torch.compile(norm, backend=keep, fullgraph=True)(x), norm(x))
    assert "rms_norm" in graphs[0] and "RMSNormStep" not in graphs[0]


def test_gemmas_norm_multiplies_by_one_and_the_weight():
    norm, x = PlusOneRMSNorm(8, 1e-6), torch.randn(5, 8)
    assert_close(norm(x), F.rms_norm(x, (8,), None, 1e-6))
    with torch.no_grad():
        norm.weight += torch.arange(8)
    assert_close(norm(x), F.rms_norm(x, (8,), 1.0 + torch.arange(8), 1e-6))
