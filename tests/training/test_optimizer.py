"""The parts around AdamW: schedule, clipping, refusal of numbers that are not finite, state by name."""

import math
import random

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.runtime.parallel.groups import owners_of
from minirlhf.training.optimizer import Optimizer, OptimizerConfig, cosine_schedule
from minirlhf.training.own_rate import drop_gradients_except

PLAIN = {"lr": 0.1, "warmup": 0.0, "lr_final": 1.0}  # a constant rate after the first update


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def optimizer(net, updates=10, **settings):
    return Optimizer({"net": net}, OptimizerConfig(**{**PLAIN, **settings}), updates)


def backward(net, scale=1.0):
    loss = scale * net(torch.arange(6.0).view(2, 3) - 2).square().sum()
    loss.backward()
    return {"loss": loss.detach()}


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_weights_in_half_precision_are_refused_and_frozen_ones_stay(dtype):
    # In bf16 a weight near 1 has steps of 0.0078, so updates of 0.001 change nothing.
    net = model()
    net[2].to(dtype)
    text = rf"^Optimizer: trained weights must be fp32, got net.2.weight \({dtype}\) and 1 more in half precision, .*"
    with pytest.raises(InputError, match=text + "load the model with dtype=torch.float32, or freeze these weights$"):
        optimizer(net)
    net[2].requires_grad_(False)
    assert [*optimizer(net).parameters] == ["net.0.weight", "net.0.bias"] and net[2].weight.dtype == dtype
    assert optimizer(model().double()).parameters


def test_schedule_rises_linearly_and_falls_in_half_a_cosine():
    # 10 updates, warm-up of 2: 1/2, 1, then 0.2 + 0.8 (1 + cos(pi k / 8)) / 2 for k = 1..8; k = 4 is half-way: 0.6
    factors = [cosine_schedule(k, updates=10, warmup=0.2, final=0.2) for k in range(10)]
    assert factors == pytest.approx([0.5, 1] + [0.2 + 0.4 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 9)])
    assert factors[5] == pytest.approx(0.6) and factors[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("update", "updates", "warmup", "final", "factor"),
    [(0, 1, 0.0, 0.1, 1), (0, 10, 0.0, 0.1, 1), (25, 10, 0.0, 0.1, 0.1), (9, 10, 1.0, 0.1, 1), (4, 10, 1.0, 0.1, 0.5)],
)
def test_schedule_at_its_edges(update, updates, warmup, final, factor):
    assert cosine_schedule(update, updates=updates, warmup=warmup, final=final) == pytest.approx(factor)


def test_lr_of_each_update_follows_the_schedule_and_is_reported():
    net = model()
    opt = optimizer(net, updates=4, lr=0.1, warmup=0.5, lr_final=0.0)
    assert [opt.step(backward(net))["lr"] for _ in range(4)] == pytest.approx([0.05, 0.1, 0.05, 0.0])


def test_the_first_update_moves_each_weight_by_lr_against_its_gradient():
    # AdamW's first step is lr g / (|g| + 1e-8)
    net = model()
    opt, before = optimizer(net), weights(net)
    sums = backward(net)
    signs = [p.grad.sign() for p in net.parameters()]
    opt.step(sums)
    assert_close([b - p for b, p in zip(before, weights(net), strict=True)], [0.1 * s for s in signs])


def test_decay_takes_lr_times_weight_decay_from_matrices_only():
    net = model()
    opt, before = optimizer(net, weight_decay=0.5), weights(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step({"loss": torch.tensor(0.0)})
    assert_close(weights(net), [b * (1 - 0.1 * 0.5) if b.dim() > 1 else b for b in before])


def test_long_gradients_are_clipped_and_the_norm_before_clipping_is_reported(monkeypatch):
    for longest, clipped in ((1.0, True), (1e6, False)):
        net = model()
        opt, sums, gradients = optimizer(net, max_grad_norm=longest), backward(net, scale=20.0), []
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters()))

        def keep_gradients(net=net, gradients=gradients):
            gradients.extend(p.grad.clone() for p in net.parameters())

        monkeypatch.setattr(opt.adamw, "step", keep_gradients)
        assert opt.step(sums)["grad_norm"] == pytest.approx(norm, rel=1e-5) and norm > 10
        after = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert after == pytest.approx(1.0 if clipped else norm, rel=1e-4)


def test_step_returns_metrics_as_numbers_and_clears_gradients():
    net = model()
    metrics = optimizer(net).step({**backward(net), "entropy": torch.tensor(0.25, dtype=torch.float64)})
    assert metrics["entropy"] == 0.25 and all(type(value) is float for value in metrics.values())
    assert list(metrics)[:2] == ["loss", "entropy"] and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_changes_nothing_and_is_reported(bad, value):
    net = model()
    opt = optimizer(net)
    opt.step(backward(net))
    before, moments, sums = weights(net), opt.state_dict(), backward(net)
    moments = {name: {k: v.clone() for k, v in state.items()} for name, state in moments["moments"].items()}
    if bad == "loss":
        sums["loss"] = torch.tensor(value)
    else:
        next(net.parameters()).grad[0, 0] = value
    metrics = opt.step(sums)
    assert not math.isfinite(metrics["loss" if bad == "loss" else "grad_norm"])
    assert_close(weights(net), before, rtol=0, atol=0)
    assert_close(opt.state_dict(), {"update": 1, "moments": moments}, rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())
    opt.step(backward(net))
    assert opt.update == 2


def test_state_continues_identically_in_a_new_optimizer():
    whole, first = model(), model()
    schedule = {"warmup": 0.5, "lr_final": 0.1}
    a, b = optimizer(whole, **schedule), optimizer(first, **schedule)
    for _ in range(3):
        a.step(backward(whole)), b.step(backward(first))
    second = model(seed=1)
    second.load_state_dict(first.state_dict())
    c = optimizer(second, **schedule)
    c.load_state_dict(b.state_dict())
    for _ in range(3):
        assert a.step(backward(whole)) == c.step(backward(second))
    assert_close(weights(second), weights(whole), rtol=0, atol=0)


def test_loaded_state_is_a_copy():
    net = model()
    opt = optimizer(net)
    opt.step(backward(net))
    state = opt.state_dict()
    kept = state["moments"]["net.0.weight"]["exp_avg"].clone()
    other = model()
    loaded = optimizer(other)
    loaded.load_state_dict(state)
    loaded.step(backward(other, scale=9.0))
    assert torch.equal(state["moments"]["net.0.weight"]["exp_avg"], kept)


def test_dropped_gradients_change_neither_weights_nor_moments():
    net = model()
    opt, before, sums = optimizer(net), weights(net), backward(net)
    drop_gradients_except(opt, net[2].parameters())
    metrics = opt.step(sums)
    after = weights(net)
    assert all(torch.equal(b, a) for b, a in zip(before[:2], after[:2], strict=True))
    assert not any(torch.equal(b, a) for b, a in zip(before[2:], after[2:], strict=True))
    assert opt.state_dict()["moments"].keys() == {"net.2.weight", "net.2.bias"} and metrics["grad_norm"] > 0


def test_the_optimizer_has_no_frozen_weights():
    net = model()
    net[0].requires_grad_(False)
    assert optimizer(net).parameters.keys() == {"net.2.weight", "net.2.bias"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lr": 0.0}, "OptimizerConfig: lr must be above 0, got 0.0"),
        ({"lr": math.nan}, "OptimizerConfig: lr must be above 0, got nan"),
        ({"lr": math.inf}, "OptimizerConfig: lr must be above 0 and finite, got inf"),
        ({"max_grad_norm": -1.0}, "OptimizerConfig: max_grad_norm must be above 0, got -1.0"),
        ({"warmup": -0.1}, "OptimizerConfig: warmup must be at least 0 and at most 1, got -0.1"),
        ({"lr_final": 2.0}, "OptimizerConfig: lr_final must be at least 0 and at most 1, got 2.0"),
        ({"weight_decay": -0.1}, "OptimizerConfig: weight_decay must be at least 0, got -0.1"),
        ({"beta1": 1.0}, "OptimizerConfig: beta1 must be at least 0 and at most 0.999999, got 1.0"),
        ({"beta2": -0.1}, "OptimizerConfig: beta2 must be at least 0 and at most 0.999999, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    with pytest.raises(InputError) as caught:
        OptimizerConfig(**{**PLAIN, **settings})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "settings", [{"lr": 1000.0}, {"warmup": 1.0, "lr_final": 0.0}, {"beta1": 0.0, "beta2": 0.999999}, {"lr_final": 1.0}]
)
def test_settings_at_the_ends_of_their_ranges_are_taken(settings):
    net = model()
    metrics = optimizer(net, **settings).step(backward(net))
    assert all(map(math.isfinite, metrics.values()))


def test_each_process_owns_a_part_of_the_parameters_of_about_equal_size():
    assert owners_of([], 2) == [] and owners_of([5], 2) == [0]
    assert owners_of([1, 9, 4, 4], 2) == [1, 0, 1, 1]
    rng = random.Random(0)
    for processes in (1, 2, 3, 8):
        sizes = [rng.randint(1, 100) for _ in range(40)]
        owners = owners_of(sizes, processes)
        loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == i) for i in range(processes)]
        assert sum(loads) == sum(sizes) and max(loads) - min(loads) <= max(sizes)
