"""Products by oneDNN equal those of MKL: values and gradients, whatever the shapes and the strides."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minirlhf.losses import cross_entropy, fused_linear_loss, linear_token_logps, tiles
from minirlhf.losses import fused as fused_module
from minirlhf.losses import products as losses_products
from minirlhf.model import products
from minirlhf.model.products import Linear

KNOWN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture
def taken(monkeypatch):
    """Every Linear takes oneDNN, on whatever processor -> the shapes that it multiplied."""
    if not KNOWN:
        pytest.skip("this torch has no oneDNN")
    shapes, product = [], products.product
    monkeypatch.setattr(losses_products, "wins", lambda: True)
    monkeypatch.setattr(products, "product", lambda x, *others: shapes.append(x.shape) or product(x, *others))
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "width"), [((1, 768, 128), 128), ((3, 500, 96), 203), ((1031, 130), 127)])
def test_values_and_gradients_are_those_of_a_linear(taken, shape, width, bias):
    torch.manual_seed(0)
    layer = Linear(shape[-1], width, bias=bias)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], width)
    inputs = [x, *layer.parameters()]
    plain = F.linear(x, *layer.parameters())
    out = layer(x)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(y, inputs, upstream) for y in (out, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-4)
    assert len(taken) == 2


def test_strides_do_not_matter(taken):
    """A sum's gradient has stride 0; a transposed input and weight have the strides of their transposes."""
    torch.manual_seed(1)
    layer, x = Linear(160, 130), torch.randn(160, 800).t().requires_grad_()
    layer.weight = nn.Parameter(torch.randn(160, 130).t())
    inputs = [x, *layer.parameters()]
    out, plain = layer(x), F.linear(x, *layer.parameters())
    assert len(taken) == 1
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-4)
    found, wanted = (torch.autograd.grad(y.sum(), inputs) for y in (out, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


def test_a_frozen_weight_keeps_no_input(taken):
    layer, x = Linear(128, 130, bias=False).requires_grad_(False), torch.randn(800, 128, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x)
    assert len(taken) == 1 and kept == [layer.weight.shape]


def test_a_frozen_weight_costs_no_gradient(taken):
    layer, x = Linear(128, 128).requires_grad_(False), torch.randn(800, 128, requires_grad=True)
    grad = torch.autograd.grad(layer(x).sum(), x)[0]
    torch.testing.assert_close(grad, layer.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)
    assert layer.weight.grad is None and layer.bias.grad is None


@pytest.mark.parametrize("case", ["few rows", "small weight", "float64", "bf16", "autocast", "meta"])
def test_other_products_stay_torch_s(taken, case):
    dtype = {"float64": torch.float64, "bf16": torch.bfloat16}.get(case, torch.float32)
    layer = Linear(128, 16 if case == "small weight" else 128, dtype=dtype, device="meta" if case == "meta" else None)
    x = torch.randn(767 if case == "few rows" else 800, 128, dtype=dtype, device=layer.weight.device)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert layer(x).shape == (len(x), layer.out_features)
    assert taken == []


@pytest.mark.parametrize("fused", [True, False])
def test_the_head_by_onednn_has_the_same_loss_and_gradients(monkeypatch, taken, fused):
    torch.manual_seed(2)
    hidden, weight = torch.randn(1, 900, 64, requires_grad=True), torch.randn(2100, 64, requires_grad=True)
    ids, mask, products_taken = torch.randint(2100, (1, 900)), torch.ones(1, 900, dtype=torch.bool), []
    product = losses_products.product
    for module in (fused_module, tiles):
        monkeypatch.setattr(module, "product", lambda *x: products_taken.append(1) or product(*x))

    def results():
        if fused:
            loss = fused_linear_loss(hidden, weight, ids, cross_entropy, mask=mask, count=900)[0]
        else:
            loss = -linear_token_logps(hidden, weight, ids)[mask].mean()
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    by_onednn = results()
    assert products_taken
    monkeypatch.setattr(losses_products, "wins", lambda: False)
    torch.testing.assert_close(by_onednn, results(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_the_processor_decides(monkeypatch, cpu, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert losses_products.wins() == (expected and KNOWN)
