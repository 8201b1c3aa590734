"""Preference losses without a reference policy."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.losses import (
    alphapo_loss,
    cpo_loss,
    dpo_sigmoid_loss,
    hinge_dpo_loss,
    ipo_loss,
    mean_logps,
    orpo_loss,
    simpo_loss,
)

LN2, LN3 = math.log(2), math.log(3)
LOSSES = [orpo_loss, cpo_loss, simpo_loss, alphapo_loss]
DTYPES = [torch.bfloat16, torch.float32, torch.float64]

f64 = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40)
logps = st.floats(-8, -0.001)
pairs = st.lists(st.tuples(logps, logps), min_size=1, max_size=5).map(lambda numbers: f64(numbers).unbind(-1))


@pytest.fixture(scope="module")
def figures():
    return json.loads(Path(__file__).with_name("golden_preference.json").read_text())


@pytest.fixture(scope="module")
def means(figures):
    return f64(figures["orpo"]["avg_chosen"]), f64(figures["orpo"]["avg_rejected"])


# ---- known answers


def test_orpo_by_hand():
    # p = 3/4 and 1/2: odds 3 and 1, -ln sigmoid(ln 3) = ln 4/3.   1/2 and 3/4: ln 4.   1/4 and 1/10: odds 1/3 and 1/9
    chosen, rejected = torch.tensor([0.75, 0.5, 0.25]).log(), torch.tensor([0.5, 0.75, 0.1]).log()
    assert_close(orpo_loss(chosen, rejected, beta=1.0), torch.tensor([0.287682, 1.386294, 0.287682]))
    assert_close(orpo_loss(chosen, rejected, beta=0.5), torch.tensor([0.143841, 0.693147, 0.143841]))


def test_cpo_by_hand():
    # 0.5 * (-1 + 1 + 2 ln 3) = ln 3: ln 4/3; smoothed by 1/4: 0.75 ln 4/3 + 0.25 ln 4
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-1.0 - 2 * LN3])
    assert_close(cpo_loss(chosen, rejected, beta=0.5), torch.tensor([0.287682]))
    assert_close(cpo_loss(chosen, rejected, beta=0.5, label_smoothing=0.25), torch.tensor([0.562335]))


def test_simpo_by_hand():
    # 2 * ln 3 - ln 3 = ln 3: ln 4/3;  2 * 0 - ln 3: ln 4
    chosen, rejected = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0 - LN3, -1.0])
    assert_close(simpo_loss(chosen, rejected, gamma=LN3), torch.tensor([0.287682, 1.386294]))


def test_alphapo_by_hand():
    # alpha 1, p = 1/2 and 1/4: rewards 1 - 2 and 1 - 4; beta ln 3 / 2, gamma 0: ln 3 / 2 * 2 = ln 3: ln 4/3
    # alpha -1: rewards p - 1: -1/2 and -3/4; beta 4 ln 3: ln 3.   alpha 1/2, p = 1/4, 1/9: (1 - 2) 2, (1 - 3) 2
    chosen, rejected = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 1 / 9]).log()
    loss = partial(alphapo_loss, gamma=0.0)
    assert_close(loss(chosen, rejected, beta=LN3 / 2, alpha=1)[:1], torch.tensor([0.287682]))
    assert_close(loss(chosen, rejected, beta=4 * LN3, alpha=-1)[:1], torch.tensor([0.287682]))
    assert_close(loss(chosen, rejected, beta=LN3 / 2, alpha=0.5)[1:], torch.tensor([0.287682]))
    # gamma ln 3 brings it to 0
    assert_close(alphapo_loss(chosen, rejected, beta=LN3 / 2, alpha=1, gamma=LN3)[:1], torch.tensor([0.693147]))


def test_golden_orpo(figures, means):
    # its `losses` are beta log sigmoid(log odds), to be maximised: minus ours
    assert_close(orpo_loss(*means), -f64(figures["orpo"]["losses"]))
    log_sigmoid = -orpo_loss(*means, beta=1.0)
    assert log_sigmoid.mean().item() == pytest.approx(figures["orpo"]["log_odds_ratio_mean"], rel=1e-6)  # float32
    log_odds = log_sigmoid - (-torch.expm1(log_sigmoid)).log()
    assert log_odds.mean().item() == pytest.approx(figures["orpo"]["log_odds_mean"], rel=1e-6)


def test_golden_log_one_minus_exp_inside_orpo(figures):
    # log(1 - p) at log p = -0.1, -0.6931, -1, -10. Against p = 1/2, whose log odds are 0. (Its first,
    # -1e-8, is left out: ours counts everything above -1e-7 as -1e-7.)
    x = f64([-0.1, -0.6931, -1.0, -10.0])
    log1mexp = f64(figures["orpo"]["log1mexp"][1:])
    losses = orpo_loss(x, torch.full_like(x, -LN2), beta=1.0)
    assert_close(losses, -F.logsigmoid(x - log1mexp))


def test_golden_cpo_and_simpo(figures, means):
    # beta 0.1 but for SimPO and AlphaPO (2, gamma 0.5); "ipo" and "hinge" are ours on log-probs
    figures = figures["cpo"]
    assert_close(cpo_loss(*means), f64(figures["sigmoid_alpha0.0"]))
    assert_close(hinge_dpo_loss(*means), f64(figures["hinge_alpha0.0"]))
    assert_close(ipo_loss(*means), f64(figures["ipo_alpha0.0"]))
    assert_close(simpo_loss(*means), f64(figures["simpo_alpha0.0"]))
    assert_close(alphapo_loss(*means, alpha=0.5), f64(figures["simpo_alpha0.5"]))


def test_golden_alphapos_reward_under_the_other_losses(figures, means):
    # (1 - p^-1/2) / (1/2)
    rewards = [(1 - (-0.5 * x).exp()) / 0.5 for x in means]
    for loss, name in ((cpo_loss, "sigmoid"), (hinge_dpo_loss, "hinge"), (ipo_loss, "ipo")):
        assert_close(loss(*rewards), f64(figures["cpo"][f"{name}_alpha0.5"]))


# ---- gradients


@pytest.mark.parametrize(
    "loss, slope",
    [
        # at chosen = rejected = ln 1/2 the log-sigmoid's slope is 1/2
        (partial(orpo_loss, beta=0.1), 0.1),  # d log odds / d log p = 1 / (1 - p) = 2
        (partial(cpo_loss, beta=0.1), 0.05),
        (partial(simpo_loss, beta=2.0, gamma=0.0), 1.0),
        (partial(simpo_loss, beta=2.0, gamma=LN3), 1.5),  # 2 * sigmoid(ln 3)
        (partial(alphapo_loss, beta=2.0, gamma=0.0, alpha=1.0), 2.0),  # d (1 - 1 / p) / d log p = 1 / p
        (partial(alphapo_loss, beta=2.0, gamma=0.0, alpha=2.0), 4.0),  # p^-2
    ],
)
def test_gradient_by_hand(loss, slope):
    pair = torch.full((2, 1), -LN2, requires_grad=True)
    loss(*pair).sum().backward()
    assert_close(pair.grad, torch.tensor([[-slope], [slope]]))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    # on both sides of ln 1/2, where log(1 - p) changes its formula
    chosen, rejected = (f64(x).requires_grad_() for x in ([-0.2, -1.5, -0.6, -3.0], [-0.9, -0.3, -2.0, -0.05]))
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


# ---- properties


@few
@given(pairs, st.randoms(use_true_random=False))
def test_pairs_do_not_see_each_other(pair, random):
    c, r = pair
    order, half = random.sample(range(len(c)), len(c)), len(c) // 2
    for loss in LOSSES:
        losses = loss(c, r)
        assert_close(loss(c[order], r[order]), losses[order])
        assert_close(torch.cat([loss(c[:half], r[:half]), loss(c[half:], r[half:])]), losses)


@few
@given(pairs, st.floats(0.02, 4))
def test_simpo_without_gamma_is_dpo_on_means_and_cpo_is_dpo_on_sums(pair, beta):
    assert_close(simpo_loss(*pair, beta=beta, gamma=0.0), dpo_sigmoid_loss(*pair, beta=beta))
    assert_close(
        cpo_loss(*pair, beta=beta, label_smoothing=0.2), dpo_sigmoid_loss(*pair, beta=beta, label_smoothing=0.2)
    )


@few
@given(pairs, st.floats(0.02, 4), st.floats(0, 2))
def test_alphapo_of_a_tiny_alpha_is_simpo(pair, beta, gamma):
    # (1 - exp(-a x)) / a = x - a x^2 / 2 + ...; x <= 8, beta <= 4: off by 4 * 32 * 1e-6 or less
    for alpha in (1e-6, -1e-6):
        almost = alphapo_loss(*pair, beta=beta, gamma=gamma, alpha=alpha)
        assert_close(almost, simpo_loss(*pair, beta=beta, gamma=gamma), atol=2e-4, rtol=0)


@few
@given(pairs, st.floats(0.02, 4))
def test_swapping_the_pair_changes_the_loss_by_the_log_odds_or_the_margin(pair, beta):
    # -log s(m) + log s(-m) = -m
    c, r = pair
    margin = (c.exp() / (1 - c.exp())).log() - (r.exp() / (1 - r.exp())).log()
    assert_close(orpo_loss(c, r, beta=beta) - orpo_loss(r, c, beta=beta), -beta * margin)
    simpo = partial(simpo_loss, beta=beta, gamma=0.0)
    assert_close(simpo(c, r) - simpo(r, c), -beta * (c - r), atol=1e-6, rtol=1e-6)
    assert (orpo_loss(c, r) > 0).all() and (simpo(c, r) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [orpo_loss, cpo_loss, simpo_loss])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(loss, dtype):
    ends = [-1e4, -100.0, -1e-3, -1e-8, 0.0]
    pair = torch.tensor([(a, b) for a in ends for b in ends], dtype=dtype).T.requires_grad_()
    losses = loss(*pair)
    losses.sum().backward()
    assert losses.dtype == dtype and losses.isfinite().all() and pair.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_alphapo_stays_finite_down_to_a_mean_of_minus_100(dtype):
    # at alpha 1/4 the reward is 4 (1 - e^25) = -3e11 there; beyond -355 fp32 would overflow
    ends = [-100.0, -10.0, -1e-3, 0.0]
    pair = torch.tensor([(a, b) for a in ends for b in ends], dtype=dtype).T.requires_grad_()
    losses = alphapo_loss(*pair)
    losses.sum().backward()
    assert losses.isfinite().all() and pair.grad.isfinite().all()


def test_orpo_keeps_its_digits_at_both_ends():
    # log odds = log p - log(1 - p). p = 1 - 1e-6: ln 1e6 = 13.815510 (1 - p by expm1); p = e^-30: -30 (1 - p is 1)
    half = f64([-LN2])
    for x, log_odds in ((math.log1p(-1e-6), 13.8155096), (-30.0, -30.0)):
        loss, back = orpo_loss(f64([x]), half, beta=1.0), orpo_loss(half, f64([x]), beta=1.0)
        assert_close(back - loss, f64([log_odds]))
    # fp32 holds 1 - p only to 6e-8: log odds of p = exp(-1e-5) are 11.512920, and
    # -log sigmoid(-11.512920) is 1e-5 more
    loss = orpo_loss(torch.tensor([-LN2]), torch.tensor([-1e-5]), beta=1.0)
    assert_close(loss, torch.tensor([11.512930]))


def test_orpo_takes_a_certain_answer_for_an_almost_certain_one():
    # log p = 0 counts as -1e-7 in log(1 - p): log odds 16.118096
    losses = orpo_loss(f64([-LN2, -LN2]), f64([0.0, -1e-9]), beta=1.0)
    assert_close(losses, f64([16.118096, 16.118096]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_is_close_to_fp64(loss):
    generator = torch.Generator().manual_seed(0)
    pair = (-0.2 - 2 * torch.rand(2, 32, generator=generator)).bfloat16()
    assert_close(loss(*pair).double(), loss(*pair.double()), rtol=0.03, atol=0.03)


def test_an_empty_answer_counts_as_a_log_prob_of_0_and_gives_no_gradient_to_its_tokens():
    logps, none = torch.full((1, 3), math.nan, requires_grad=True), torch.zeros(1, 3, dtype=torch.bool)
    for loss in LOSSES:
        logps.grad = None
        losses = loss(torch.tensor([-LN2]), mean_logps(logps, none))
        losses.sum().backward()
        assert losses.isfinite().all() and torch.equal(logps.grad, torch.zeros(1, 3))


# ---- bad input


@pytest.mark.parametrize("loss, name", list(zip(LOSSES, ["orpo", "dpo_sigmoid", "simpo", "simpo"], strict=True)))
def test_bad_input_is_refused(loss, name):
    two = torch.full((2,), -1.0)
    shapes = r"\{'chosen_log\w+': \(2,\), 'rejected_log\w+': \(1,\)\}"
    with pytest.raises(ValueError, match=f"^{name}_loss: needed tensors of one shape, got {shapes}"):
        loss(two, two[:1])
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"^{name}_loss: beta must be > 0, got {beta}"):
            loss(two, two, beta=beta)


def test_label_smoothing_and_alpha_are_checked():
    two = torch.full((2,), -1.0)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\), got 0.5"):
        cpo_loss(two, two, label_smoothing=0.5)
    with pytest.raises(ValueError, match="^alphapo_loss: alpha must not be 0, got 0; use simpo_loss"):
        alphapo_loss(two, two, alpha=0)
