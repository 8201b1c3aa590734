"""Preference losses of single good or bad completions, KTO's reference point, BCO's shift and density ratio."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import (
    RunningMean,
    apo_zero_loss,
    apo_zero_unpaired_loss,
    bco_loss,
    bco_pair_loss,
    density_ratio,
    kto_kl,
    kto_loss,
)

LN3 = math.log(3)
LOSSES = [partial(kto_loss, kl=0.2), apo_zero_unpaired_loss, partial(bco_loss, shift=0.1)]

f64 = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40)
rows = st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=6).map(
    lambda rows: (f64([x for x, _ in rows]), torch.tensor([good for _, good in rows]))
)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def figures():
    return json.loads(Path(__file__).with_name("golden_preference.json").read_text())


@pytest.fixture(scope="module")
def ratios(figures):
    """(chosen, rejected) log-ratios: 0.5, -0.5, 1.5 and -1, 1, -1."""
    pairs = figures["pairs"]
    return tuple(f64(pairs[f"policy_{side}"]) - f64(pairs[f"ref_{side}"]) for side in ("chosen", "rejected"))


# ---- known answers


def test_kto_by_hand():
    # beta 1, kl ln 3. good x = 2 ln 3: 1 - sigmoid(ln 3) = 1/4; good x = 0: 1 - 1/4 = 3/4
    # bad x = 2 ln 3: 1 - sigmoid(-ln 3) = 3/4; bad x = ln 3: 1/2
    logratios, desirable = torch.tensor([2 * LN3, 0.0, 2 * LN3, LN3]), torch.tensor([True, True, False, False])
    losses = kto_loss(logratios, desirable=desirable, kl=LN3, beta=1.0)
    assert_close(losses, torch.tensor([0.25, 0.75, 0.75, 0.5]))
    weighted = kto_loss(
        logratios, desirable=desirable, kl=torch.tensor(LN3), beta=1.0, desirable_weight=2, undesirable_weight=0.5
    )
    assert_close(weighted, torch.tensor([0.5, 1.5, 0.375, 0.25]))


def test_apo_zero_by_hand():
    # beta 0.5, x = 2 ln 3: good 1 - 3/4, bad 3/4
    x = torch.tensor([2 * LN3, 2 * LN3])
    losses = apo_zero_unpaired_loss(x, desirable=torch.tensor([True, False]), beta=0.5)
    assert_close(losses, torch.tensor([0.25, 0.75]))


def test_bco_by_hand():
    # beta 2, shift ln 3: 2 * ln 3 - ln 3 = ln 3, and 2 * 0 - ln 3.  good: ln 4/3, ln 4;  bad: ln 4, ln 4/3
    logratios, desirable = torch.tensor([LN3, 0.0, LN3, 0.0]), torch.tensor([True, True, False, False])
    losses = bco_loss(logratios, desirable=desirable, shift=LN3, beta=2.0)
    assert_close(losses, torch.tensor([0.287682, 1.386294, 1.386294, 0.287682]))
    # weights act on the bad completions only
    weights = torch.tensor([9.0, 9.0, 2.0, 0.5])
    losses = bco_loss(logratios, desirable=desirable, shift=torch.tensor(LN3), beta=2.0, undesirable_weights=weights)
    assert_close(losses, torch.tensor([0.287682, 1.386294, 2.772589, 0.143841]))
    losses = bco_loss(logratios, desirable=desirable, shift=LN3, beta=2.0, undesirable_weights=2.0)
    assert_close(losses, torch.tensor([0.287682, 1.386294, 2.772589, 0.575364]))


def test_kto_kl_by_hand():
    # (1 + 2 - 0.6) / 3 = 0.8; a negative mean is 0
    assert_close(kto_kl(torch.tensor([1.0, 2.0, -0.6])), torch.tensor(0.8))
    assert_close(kto_kl(torch.tensor([1.0, -2.0])), torch.tensor(0.0))


def test_kto_kl_over_ranks_takes_their_sum_and_number():
    # 1 + 2 on this rank, 9 on another: 12 / 4 = 3, for any numbers of this rank
    here = torch.tensor([1.0, 2.0])
    for total, count in ((12.0, 4), (torch.tensor(12.0), torch.tensor(4))):
        assert_close(kto_kl(here, total, count), torch.tensor(3.0))
    assert_close(kto_kl(here, count=6), torch.tensor(0.5))
    assert_close(kto_kl(here, total=8.0), torch.tensor(4.0))


def test_kto_kl_of_a_count_of_0_is_0_and_not_the_local_mean():
    assert_close(kto_kl(torch.zeros(0)), torch.tensor(0.0))
    assert_close(kto_kl(torch.tensor([7.0]), torch.tensor(0.0), torch.tensor(0)), torch.tensor(0.0))


def test_density_ratio_by_hand():
    # 0.6 / 0.4 = 1.5; 0.8 / 0.2 = 4; 0.1 / 0.9 is below 0.5; 0.99 / 0.01 = 99 is above 10; 1 / 0 too
    prob = torch.tensor([0.6, 0.8, 0.1, 0.99, 1.0, 0.0])
    assert_close(density_ratio(prob), torch.tensor([1.5, 4.0, 0.5, 10.0, 10.0, 0.5]))
    assert_close(density_ratio(prob, least=0.0, most=2.0), torch.tensor([1.5, 2.0, 1 / 9, 2.0, 2.0, 0.0]))


def test_golden_kto_and_apo_zero(figures, ratios):
    for x, side, good in zip(ratios, ("chosen", "rejected"), (True, False), strict=True):
        desirable, kto, apo = torch.full((3,), good), figures["kto"]["kto"], figures["kto"]["apo_zero_unpaired"]
        assert_close(kto_loss(x, desirable=desirable, kl=kto["kl"]), f64(kto[side]))
        assert_close(apo_zero_unpaired_loss(x, desirable=desirable), f64(apo[side]))


def test_golden_bco_and_its_running_mean(figures, ratios):
    # its shift is the mean of the six rewards, 0.1 * 0.5 / 6, updated before use; a second call with the same rewards
    # does not change it
    figures, logratios = figures["bco"], torch.cat(ratios)
    shift = RunningMean()
    for _ in range(2):
        shift.update((0.1 * logratios).sum().item(), 6)
        assert shift.mean == pytest.approx(figures["delta"], rel=1e-6)  # printed from float32
        losses = bco_loss(logratios, desirable=torch.arange(6) < 3, shift=shift.mean)
        assert_close(losses, f64(figures["losses"]))


# ---- gradients


@pytest.mark.parametrize(
    "loss, good, bad",
    [
        # beta 0.1 at x = kl = 0: the sigmoid's slope is 1/4, the log-sigmoid's 1/2
        (partial(kto_loss, kl=0.0), -0.025, 0.025),
        (partial(kto_loss, kl=0.0, desirable_weight=2.0, undesirable_weight=3.0), -0.05, 0.075),
        (apo_zero_unpaired_loss, -0.025, 0.025),
        (partial(bco_loss, shift=0.0), -0.05, 0.05),
        (partial(bco_loss, shift=0.0, undesirable_weights=4.0), -0.05, 0.2),
    ],
)
def test_gradient_at_the_first_step_by_hand(loss, good, bad):
    x = torch.zeros(2, requires_grad=True)
    loss(x, desirable=torch.tensor([True, False]), beta=0.1).sum().backward()
    assert_close(x.grad, torch.tensor([good, bad]))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    desirable = torch.tensor([True, False, True, False])
    assert torch.autograd.gradcheck(lambda x: loss(x, desirable=desirable, beta=0.7), randn(0, 4).requires_grad_())


def test_reference_points_are_detached():
    logratios = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not kto_kl(logratios).requires_grad
    assert not kto_kl(logratios, logratios.sum(), 2).requires_grad


# ---- properties


@few
@given(rows, st.floats(0.02, 2), st.floats(0, 10), st.randoms(use_true_random=False))
def test_rows_do_not_see_each_other(batch, beta, kl, random):
    x, good = batch
    order, half = random.sample(range(len(x)), len(x)), len(x) // 2
    for loss in (partial(kto_loss, kl=kl), apo_zero_unpaired_loss, partial(bco_loss, shift=kl)):
        losses = loss(x, desirable=good, beta=beta)
        assert_close(loss(x[order], desirable=good[order], beta=beta), losses[order])
        parts = [loss(x[part], desirable=good[part], beta=beta) for part in (slice(0, half), slice(half, None))]
        assert_close(torch.cat(parts), losses)


@few
@given(rows, st.floats(0.02, 2), st.floats(0, 10))
def test_good_and_bad_mirror_each_other(batch, beta, kl):
    # KTO and APO: 1 - sigmoid(z) + 1 - sigmoid(-z) = 1. BCO: -log sigmoid(z) + log sigmoid(-z) = -z
    x, good = batch
    kto = partial(kto_loss, x, kl=kl, beta=beta)
    assert_close(kto(desirable=good) + kto(desirable=~good), torch.ones_like(x))
    assert_close(kto_loss(x, desirable=good, kl=0, beta=beta), apo_zero_unpaired_loss(x, desirable=good, beta=beta))
    bco = partial(bco_loss, x, shift=kl, beta=beta)
    all_good = torch.ones_like(good)
    assert_close(bco(desirable=all_good) - bco(desirable=~all_good), kl - beta * x)


@few
@given(rows, st.floats(0.02, 2), st.floats(-5, 5))
def test_a_pair_is_a_good_and_a_bad_row(batch, beta, shift):
    c = batch[0]
    r = c.flip(0) - 1
    good, bad = torch.ones_like(batch[1]), torch.zeros_like(batch[1])
    apo = partial(apo_zero_unpaired_loss, beta=beta)
    assert_close(apo(c, desirable=good) + apo(r, desirable=bad), apo_zero_loss(c, r, beta=beta))
    bco = partial(bco_loss, shift=shift, beta=beta)
    assert_close(bco(c, desirable=good) + bco(r, desirable=bad), bco_pair_loss(c, r, beta=beta, shift=shift))


@few
@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), max_size=6))
def test_running_mean_is_the_mean_of_everything_and_survives_a_restart(batches):
    mean = RunningMean()
    for batch in batches:
        mean.update(sum(batch), len(batch))
        fresh = RunningMean()
        fresh.load_state_dict(json.loads(json.dumps(mean.state_dict())))
        mean = fresh
    everything = [x for batch in batches for x in batch]
    assert mean.mean == pytest.approx(sum(everything) / max(len(everything), 1), abs=1e-9)
    assert mean.state_dict() == {"mean": mean.mean, "n": len(everything)}


def test_running_mean_by_hand():
    # (3 + 5) / 2 = 4; then 12 more in one number: 20 / 3; an update with no numbers changes nothing
    mean = RunningMean()
    assert (mean.mean, mean.n) == (0.0, 0.0)
    mean.update(0.0, 0)
    assert (mean.mean, mean.n) == (0.0, 0.0)
    mean.update(8.0, 2)
    assert (mean.mean, mean.n) == (4.0, 2)
    mean.update(12.0, 1)
    mean.update(0.0, 0)
    assert mean.mean == pytest.approx(20 / 3) and mean.n == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_log_ratios_stay_finite_in_value_and_gradient(loss, dtype):
    x = torch.tensor([-1e4, -1e4, 0.0, 0.0, 1e4, 1e4], dtype=dtype, requires_grad=True)
    losses = loss(x, desirable=torch.tensor([True, False] * 3))
    losses.sum().backward()
    assert losses.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_is_close_to_fp64(loss):
    x, good = (3 * randn(0, 32)).bfloat16(), randn(1, 32) > 0
    assert_close(loss(x, desirable=good).double(), loss(x.double(), desirable=good), rtol=0.03, atol=0.03)


def test_no_rows_give_no_losses():
    for loss in LOSSES:
        assert loss(torch.zeros(0), desirable=torch.zeros(0, dtype=torch.bool)).shape == (0,)


# ---- bad input


@pytest.mark.parametrize("loss, name", list(zip(LOSSES, ["kto_loss", "kto_loss", "bco_loss"], strict=True)))
def test_bad_input_is_refused(loss, name):
    x, good = torch.zeros(2), torch.tensor([True, False])
    with pytest.raises(ValueError, match=rf"^{name}: needed .*\{{'logratios': \(2,\), 'desirable': \(2, 1\)\}}"):
        loss(x, desirable=good[:, None])
    with pytest.raises(ValueError, match=f"^{name}: desirable must be bool with True = good, got torch.int64; use "):
        loss(x, desirable=good.long())
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"^{name}: beta must be > 0, got {beta}; it is the price of a nat of KL"):
            loss(x, desirable=good, beta=beta)
