"""Preference losses of pairs against a reference, and their links."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import minirlhf.losses as L
from minirlhf.losses import (
    alpha_link,
    aot_paired_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    dpo_loss,
    dpo_sigmoid_loss,
    exo_loss,
    forward_kl_link,
    hinge_dpo_loss,
    ipo_loss,
    js_link,
    nca_loss,
    robust_dpo_loss,
    sppo_hard_loss,
)

LN2, LN3 = math.log(2), math.log(3)
OF_THE_MARGIN = [dpo_sigmoid_loss, robust_dpo_loss, ipo_loss, hinge_dpo_loss, exo_loss, discopop_loss]
ABSOLUTE = [nca_loss, bco_pair_loss, sppo_hard_loss, apo_zero_loss, apo_down_loss]
PAIRWISE = OF_THE_MARGIN + ABSOLUTE
SMOOTHED = [dpo_sigmoid_loss, robust_dpo_loss, exo_loss, aot_unpaired_loss]
LINKS = [forward_kl_link, js_link, alpha_link]

f64 = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40)
betas, smoothings = st.floats(0.02, 2), st.floats(0.01, 0.45)
pairs = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=5).map(
    lambda numbers: f64(numbers).unbind(-1)
)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def figures():
    """What TRL prints on `pairs`, beta 0.1: v0.16.0 in float64, 1.9 and 1.16 in float32 (hence 8 digits of them)."""
    return json.loads(Path(__file__).with_name("golden_preference.json").read_text())


@pytest.fixture(scope="module")
def ratios(figures):
    """(chosen, rejected) log-ratios: 0.5, -0.5, 1.5 and -1, 1, -1."""
    pairs = figures["pairs"]
    return tuple(f64(pairs[f"policy_{side}"]) - f64(pairs[f"ref_{side}"]) for side in ("chosen", "rejected"))


@pytest.fixture(scope="module")
def four_logps(figures):
    pairs = figures["pairs"]
    names = {"chosen_logps": "policy_chosen", "rejected_logps": "policy_rejected"}
    names |= {f"ref_{side}_logps": f"ref_{side}" for side in ("chosen", "rejected")}
    return {name: f64(pairs[key]) for name, key in names.items()}


# ---- known answers


@pytest.mark.parametrize(
    "loss, options, want",
    [
        # chosen c = ln 3, rejected r = 0, beta 1, so the margin m = ln 3; sigmoid(m) = 3/4, sigmoid(-m) = 1/4
        (dpo_sigmoid_loss, {}, math.log(4 / 3)),
        # 0.75 ln 4/3 + 0.25 ln 4 = 0.215762 + 0.346574
        (dpo_sigmoid_loss, {"label_smoothing": 0.25}, 0.562335),
        # (0.75 ln 4/3 - 0.25 ln 4) / 0.5 = (0.215762 - 0.346574) / 0.5
        (robust_dpo_loss, {"label_smoothing": 0.25}, -0.261624),
        # (1.098612 - 0.5)^2
        (ipo_loss, {}, 0.358337),
        # 1 - 1.098612 < 0
        (hinge_dpo_loss, {}, 0.0),
        # 3/4 ln((3/4) / 0.9) + 1/4 ln((1/4) / 0.1) = -0.136741 + 0.229073
        (exo_loss, {"label_smoothing": 0.1}, 0.092332),
        # ln 4/3 + (ln 4 + ln 2) / 2 = 0.287682 + 1.039721
        (nca_loss, {}, 1.327403),
        # ln 4/3 + ln 2
        (bco_pair_loss, {}, 0.980829),
        # shift ln 3: -ln sigmoid(0) - ln sigmoid(ln 3) = ln 2 + ln 4/3; shift 2 ln 3: ln 4 + -ln(9/10)
        (bco_pair_loss, {"shift": LN3}, 0.980829),
        (bco_pair_loss, {"shift": 2 * LN3}, 1.491655),
        # (1.098612 - 0.5)^2 + 0.5^2
        (sppo_hard_loss, {}, 0.608337),
        # 1 - 3/4 + 1/2 and 3/4 + 1 - 3/4
        (apo_zero_loss, {}, 0.75),
        (apo_down_loss, {}, 1.0),
        # temperature 1: gate 3/4; 1/4 ln 4/3 + 3/4 * 1/3 = 0.071921 + 0.25
        (discopop_loss, {"temperature": 1.0}, 0.321921),
    ],
)
def test_by_hand(loss, options, want):
    got = loss(torch.tensor([LN3]), torch.zeros(1), beta=1.0, **options)
    assert_close(got, torch.tensor([want]))


def test_beta_scales_the_margin_by_hand():
    # m = 0.5 * (1 - (1 - 2 ln 3)) = ln 3. hinge: 1 - 0.5 * (-1 - 1) = 2; ipo: (1 - 3 - 1 / (2 * 0.25))^2 = 16
    one = torch.ones(1)
    assert_close(dpo_sigmoid_loss(one, 1 - 2 * LN3 * one, beta=0.5), torch.tensor([0.287682]))
    assert_close(hinge_dpo_loss(-one, one, beta=0.5), torch.tensor([2.0]))
    assert_close(ipo_loss(one, 3 * one, beta=0.25), torch.tensor([16.0]))


def test_dpo_of_four_log_probs_by_hand():
    # beta 0.5: 0.5 * ((-2 + 4) - (-5 + 7)) = 0: ln 2.   0.5 * ((-2 + 2 + 2 ln 3) - 0) = ln 3: ln 4/3
    logps = {"chosen_logps": [-2.0, -2.0], "rejected_logps": [-5.0, -7.0]}
    logps |= {"ref_chosen_logps": [-4.0, -2.0 - 2 * LN3], "ref_rejected_logps": [-7.0, -7.0]}
    losses = dpo_loss(**{name: torch.tensor(x) for name, x in logps.items()}, beta=0.5)
    assert_close(losses, torch.tensor([0.693147, 0.287682]))


def test_dpo_starts_at_ln_2():
    logps = randn(0, 2, 4)
    start = {"chosen_logps": logps[0], "rejected_logps": logps[1]}
    start |= {"ref_chosen_logps": logps[0], "ref_rejected_logps": logps[1]}
    for smoothing in (0.0, 0.3):
        assert_close(dpo_loss(**start, label_smoothing=smoothing), torch.full((4,), LN2, dtype=torch.float64))


def test_aot_by_hand():
    # sorted chosen 0, ln 3; sorted rejected -ln 3, 0: both margins are ln 3. In pairs they would be 2 ln 3 and 0
    chosen, rejected = torch.tensor([LN3, 0.0]), torch.tensor([-LN3, 0.0])
    assert_close(aot_unpaired_loss(chosen, rejected, beta=1.0), torch.tensor([0.287682, 0.287682]))
    # margins of the policy (2, ln 3) and of the reference (0, 2): sorted ln 3 - 0 and 2 - 2
    logps = {"chosen_logps": torch.tensor([1.0, LN3]), "rejected_logps": torch.tensor([-1.0, 0.0])}
    logps |= {"ref_chosen_logps": torch.tensor([3.0, 1.0]), "ref_rejected_logps": torch.tensor([3.0, -1.0])}
    assert_close(aot_paired_loss(**logps, beta=1.0), torch.tensor([0.287682, 0.693147]))
    # ln 3: 0.75 ln 4/3 + 0.25 ln 4
    assert_close(aot_paired_loss(**logps, beta=1.0, label_smoothing=0.25), torch.tensor([0.562335, 0.693147]))


def test_links_by_hand():
    # x = 0, ln 3, -ln 3. -1 / u: -1, -1/3, -3.   ln(u / (1 + u)): ln 1/2, ln 3/4, ln 1/4
    x = torch.tensor([0.0, LN3, -LN3])
    assert_close(forward_kl_link(x), torch.tensor([-1.0, -1 / 3, -3.0]))
    assert_close(js_link(x), torch.tensor([-0.693147, -0.287682, -1.386294]))
    # -2 / sqrt(u) at u = 1, 9, 1/9: -2, -2/3, -6.   alpha 1/4 at u = 1, 16: -4, -2
    assert_close(alpha_link(2 * x), torch.tensor([-2.0, -2 / 3, -6.0]))
    assert_close(alpha_link(torch.tensor([0.0, 4 * LN2]), alpha=0.25), torch.tensor([-4.0, -2.0]))


V0_16 = {
    "sigmoid": dpo_sigmoid_loss,
    "sigmoid_ls0.1": partial(dpo_sigmoid_loss, label_smoothing=0.1),
    "robust": partial(robust_dpo_loss, label_smoothing=0.0),
    "robust_ls0.1": robust_dpo_loss,
    "hinge": hinge_dpo_loss,
    "ipo": ipo_loss,  # on sums, as in the paper
    "exo_pair": exo_loss,
    "exo_pair_ls0.1": partial(exo_loss, label_smoothing=0.1),
    "sppo_hard": sppo_hard_loss,
    "nca_pair": nca_loss,
    "aot_pair": aot_unpaired_loss,  # v0.16 swapped the two names of AOT
    "aot_pair_ls0.1": partial(aot_unpaired_loss, label_smoothing=0.1),
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "sigmoid_js": lambda c, r: dpo_sigmoid_loss(js_link(c), js_link(r)),
    "sigmoid_alpha0.5": lambda c, r: dpo_sigmoid_loss(alpha_link(c), alpha_link(r)),
}
V1_16 = {  # label_smoothing is ignored by its sigmoid, so there is no figure for it
    "sigmoid": dpo_sigmoid_loss,
    "robust": partial(robust_dpo_loss, label_smoothing=0.0),
    "robust_ls0.1": robust_dpo_loss,
    "hinge": hinge_dpo_loss,
    "exo_pair_ls0.001": exo_loss,
    "sppo_hard": sppo_hard_loss,
    "nca_pair": nca_loss,
    "bco_pair": bco_pair_loss,
    "aot_unpaired": aot_unpaired_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "sigmoid_forward_kl": lambda c, r: dpo_sigmoid_loss(forward_kl_link(c), forward_kl_link(r)),
    "sigmoid_js_divergence": lambda c, r: dpo_sigmoid_loss(js_link(c), js_link(r)),
    "sigmoid_alpha_divergence": lambda c, r: dpo_sigmoid_loss(alpha_link(c), alpha_link(r)),
}


@pytest.mark.parametrize("name", V0_16)
def test_golden_v0_16(figures, ratios, name):
    assert_close(V0_16[name](*ratios), f64(figures["dpo_0_16"][name]))


@pytest.mark.parametrize("name", V1_16)
def test_golden_1_16(figures, ratios, name):
    assert_close(V1_16[name](*ratios), f64(figures["dpo_1_16"][name]), rtol=1e-6, atol=0)


def test_golden_dpo_and_paired_aot_from_four_log_probs(figures, four_logps):
    # "aot" is `aot_paired_loss` in both versions' figures: v0.16 swapped the names, see V0_16
    assert_close(dpo_loss(**four_logps), f64(figures["dpo_0_16"]["sigmoid"]))
    assert_close(dpo_loss(**four_logps, label_smoothing=0.1), f64(figures["dpo_0_16"]["sigmoid_ls0.1"]))
    for version, rtol in (("dpo_0_16", 1e-7), ("dpo_1_16", 1e-6)):
        assert_close(aot_paired_loss(**four_logps), f64(figures[version]["aot"]), rtol=rtol, atol=0)
        smoothed = aot_paired_loss(**four_logps, label_smoothing=0.1)
        assert_close(smoothed, f64(figures[version]["aot_ls0.1"]), rtol=rtol, atol=0)


def test_golden_without_a_reference(figures, four_logps):
    losses = dpo_sigmoid_loss(four_logps["chosen_logps"], four_logps["rejected_logps"])
    assert_close(losses, f64(figures["dpo_0_16"]["sigmoid_reffree"]))


def test_golden_length_normalised(figures, ratios):
    # "sigmoid_norm" and, since 1.9, "ipo" see log-ratios per token; our functions take any log-ratios
    means = [x / f64(figures["pairs"][f"len_{side}"]) for x, side in zip(ratios, ("chosen", "rejected"), strict=True)]
    assert_close(dpo_sigmoid_loss(*means), f64(figures["dpo_1_16"]["sigmoid_norm"]), rtol=1e-6, atol=0)
    assert_close(ipo_loss(*means), f64(figures["dpo_1_16"]["ipo"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name, link, at_1",
    [
        ("ipo_forward_kl", forward_kl_link, -1.0),
        ("ipo_js_divergence", js_link, -LN2),
        ("ipo_alpha_divergence", alpha_link, -2.0),
    ],
)
def test_golden_links_under_ipo_of_means(figures, ratios, name, link, at_1):
    # 1.9 divides our link by the length. 1.16 first subtracts the link's value at a ratio of 1: this constant
    # cancels in a difference of sums, but not in a difference of means
    lengths = [f64(figures["pairs"][f"len_{side}"]) for side in ("chosen", "rejected")]
    for version, constant in (("dpo_1_9_where_it_differs", 0.0), ("dpo_1_16", at_1)):
        means = [(link(x) - constant) / n for x, n in zip(ratios, lengths, strict=True)]
        assert_close(ipo_loss(*means), f64(figures[version][name]), rtol=1e-6, atol=0)


# ---- gradients


@pytest.mark.parametrize(
    "loss, options, chosen, rejected",
    [
        # beta 0.1, at c = r = 0, where sigmoid is 1/2 and its slope 1/4
        (dpo_sigmoid_loss, {}, -0.05, 0.05),  # -+ beta / 2
        (dpo_sigmoid_loss, {"label_smoothing": 0.1}, -0.04, 0.04),  # -+ beta / 2 (1 - 2 e)
        (robust_dpo_loss, {"label_smoothing": 0.1}, -0.0625, 0.0625),  # -+ beta / 2 / (1 - 2 e)
        (ipo_loss, {}, -10.0, 10.0),  # 2 (0 - 1 / (2 beta)) = -1 / beta
        (hinge_dpo_loss, {}, -0.1, 0.1),
        (exo_loss, {"label_smoothing": 0.1}, -0.0549306, 0.0549306),  # beta / 4 ln(e / (1 - e)) = -0.025 ln 9
        (nca_loss, {}, -0.025, 0.025),  # -beta / 2 + beta / 4, and beta / 4
        (bco_pair_loss, {}, -0.05, 0.05),
        (sppo_hard_loss, {}, -10.0, 10.0),
        (aot_unpaired_loss, {}, -0.05, 0.05),
        (apo_zero_loss, {}, -0.025, 0.025),
        (apo_down_loss, {}, 0.0, 0.025),  # beta / 4 - beta / 4
        # beta (1/4 / 0.05 (1 - ln 2) - 1/2 * 1/2 - 1/2) = 0.1 (1.534264 - 0.75): at first it pulls the pair together
        (discopop_loss, {}, 0.0784264, -0.0784264),
    ],
)
def test_gradient_at_the_first_step_by_hand(loss, options, chosen, rejected):
    pair = torch.zeros(2, 1, requires_grad=True)
    loss(*pair, beta=0.1, **options).sum().backward()
    assert_close(pair.grad, torch.tensor([[chosen], [rejected]]))


@pytest.mark.parametrize("loss", PAIRWISE + [aot_unpaired_loss])
def test_gradcheck(loss):
    pair = tuple(x.requires_grad_() for x in 3 * randn(0, 2, 4))
    assert torch.autograd.gradcheck(partial(loss, beta=0.3), pair)


@pytest.mark.parametrize("loss", [dpo_loss, aot_paired_loss])
def test_gradcheck_of_four(loss):
    names = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]
    four = tuple(x.requires_grad_() for x in randn(1, 4, 3))
    assert torch.autograd.gradcheck(lambda *xs: loss(**dict(zip(names, xs, strict=True)), beta=0.7), four)


def test_gradcheck_of_links():
    for link in LINKS:
        assert torch.autograd.gradcheck(link, randn(0, 4).requires_grad_())


def test_links_are_held_at_minus_20_without_gradient():
    for link in (forward_kl_link, alpha_link):
        x = f64([-20.5, -1e4, -19.5]).requires_grad_()
        values = link(x)
        assert torch.equal(values[:2], link(f64([-20.0, -20.0])))
        values.sum().backward()
        assert x.grad[:2].tolist() == [0.0, 0.0] and x.grad[2] > 1e3


# ---- properties


@few
@given(pairs, st.floats(-50, 50), betas)
def test_a_constant_added_to_both_log_ratios_changes_nothing(pair, constant, beta):
    c, r = pair
    for loss in OF_THE_MARGIN + [aot_unpaired_loss]:
        assert_close(loss(c + constant, r + constant, beta=beta), loss(c, r, beta=beta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", ABSOLUTE)
def test_a_constant_added_to_both_changes_losses_of_absolute_likelihoods(loss):
    c, r = f64([0.5]), f64([-1.0])
    assert abs(loss(c + 3, r + 3, beta=1.0) - loss(c, r, beta=1.0)) > 0.1


@few
@given(pairs, st.randoms(use_true_random=False))
def test_pairs_do_not_see_each_other(pair, random):
    c, r = pair
    order = random.sample(range(len(c)), len(c))
    half = len(c) // 2
    for loss in PAIRWISE:
        losses = loss(c, r)
        assert_close(loss(c[order], r[order]), losses[order])
        assert_close(torch.cat([loss(c[:half], r[:half]), loss(c[half:], r[half:])]), losses)


@few
@given(pairs, st.randoms(use_true_random=False))
def test_aot_sees_two_unordered_heaps(pair, random):
    c, r = pair
    one, two = (random.sample(range(len(c)), len(c)) for _ in range(2))
    assert_close(aot_unpaired_loss(c[one], r[two]), aot_unpaired_loss(c, r))


def test_aot_does_not_add_up_over_parts_of_a_batch():
    # chosen (4, 0), rejected (0, 4): alone the margins are 4 and -4, together 0 and 0
    c, r = f64([4.0, 0.0]), f64([0.0, 4.0])
    assert_close(aot_unpaired_loss(c, r, beta=1.0), f64([LN2, LN2]))
    parts = torch.cat([aot_unpaired_loss(c[:1], r[:1], beta=1.0), aot_unpaired_loss(c[1:], r[1:], beta=1.0)])
    assert_close(parts, dpo_sigmoid_loss(c, r, beta=1.0))
    assert parts.sum() > 4


@few
@given(pairs, betas)
def test_aot_of_one_pair_is_dpo_and_the_paired_form_is_too(pair, beta):
    c, r = pair
    assert_close(aot_unpaired_loss(c[:1], r[:1], beta=beta), dpo_sigmoid_loss(c[:1], r[:1], beta=beta))
    # with one pair (c - r) - (ref_c - ref_r) is DPO's margin too
    four = {"chosen_logps": c[:1], "rejected_logps": r[:1], "ref_chosen_logps": r[:1], "ref_rejected_logps": c[:1] / 2}
    assert_close(aot_paired_loss(**four, beta=beta), dpo_loss(**four, beta=beta))


@few
@given(pairs, betas, smoothings)
def test_smoothing_is_the_chance_that_the_pair_is_swapped(pair, beta, e):
    # so swapping chosen and rejected is the loss with 1 - e
    c, r = pair
    there, back = dpo_sigmoid_loss(c, r, beta=beta), dpo_sigmoid_loss(r, c, beta=beta)
    smoothed = partial(dpo_sigmoid_loss, beta=beta, label_smoothing=e)
    assert_close(smoothed(c, r), (1 - e) * there + e * back)
    assert_close(smoothed(r, c), e * there + (1 - e) * back)


@few
@given(pairs, betas, smoothings)
def test_robust_loss_averaged_over_flips_is_dpo_with_clean_labels(pair, beta, e):
    c, r = pair
    robust = partial(robust_dpo_loss, beta=beta, label_smoothing=e)
    clean = dpo_sigmoid_loss(c, r, beta=beta)
    assert_close((1 - e) * robust(c, r) + e * robust(r, c), clean, rtol=1e-9, atol=1e-9)


@few
@given(betas, smoothings)
def test_cdpo_and_exo_stop_at_a_margin_of_log_odds_over_beta(beta, e):
    stop = math.log((1 - e) / e) / beta
    for loss in (dpo_sigmoid_loss, exo_loss):
        c = f64([stop]).requires_grad_()
        losses = loss(c, f64([0.0]), beta=beta, label_smoothing=e)
        (slope,) = torch.autograd.grad(losses.sum(), c)
        assert abs(slope) < 1e-12
        for step in (-0.1, 0.1):
            assert loss(c + step, f64([0.0]), beta=beta, label_smoothing=e) > losses
    assert_close(losses, f64([0.0]), atol=1e-12, rtol=0)  # exo: the two distributions are equal


@few
@given(st.floats(-3, 3), betas)
def test_honest_labels_lead_dpo_to_the_reward_and_ipo_to_the_chance_to_win(difference, beta):
    # labelled by Bradley-Terry with chance p = sigmoid(difference), the expected slope is 0 where
    # beta (c - r) = difference; for IPO where c - r = (2 p - 1) / (2 beta)
    p = 1 / (1 + math.exp(-difference))
    for loss, margin in ((dpo_sigmoid_loss, difference / beta), (ipo_loss, (2 * p - 1) / (2 * beta))):
        c, r = f64([margin]).requires_grad_(), f64([0.0])
        expected = p * loss(c, r, beta=beta) + (1 - p) * loss(r, c, beta=beta)
        (slope,) = torch.autograd.grad(expected.sum(), c)
        assert abs(slope) < 1e-9


@few
@given(pairs, betas)
def test_zeros_and_signs(pair, beta):
    c, r = pair
    for loss in (dpo_sigmoid_loss, ipo_loss, hinge_dpo_loss, nca_loss, bco_pair_loss, sppo_hard_loss, apo_zero_loss):
        assert (loss(c, r, beta=beta) >= 0).all()
    assert (exo_loss(c, r, beta=beta) >= -1e-12).all() and (apo_down_loss(c, r, beta=beta) >= -1e-12).all()
    half = torch.full_like(c, 0.5 / beta)
    assert_close(ipo_loss(r + half, r, beta=beta), torch.zeros_like(c), atol=1e-9, rtol=0)
    assert torch.equal(sppo_hard_loss(half, -half, beta=beta), torch.zeros_like(c))
    assert torch.equal(hinge_dpo_loss(2 * half + 1, torch.zeros_like(c), beta=beta), torch.zeros_like(c))


@few
@given(pairs, st.floats(-2, 2), betas)
def test_a_shift_of_bco_is_a_constant_taken_off_both_rewards(pair, shift, beta):
    c, r = pair
    moved = bco_pair_loss(c - shift / beta, r - shift / beta, beta=beta)
    assert_close(bco_pair_loss(c, r, beta=beta, shift=shift), moved)
    assert_close(bco_pair_loss(c, r, beta=beta, shift=f64(shift)), moved)


EXTREMES = [(a, b) for a in (-1e4, 0.0, 1e4) for b in (-1e4, 0.0, 1e4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss", PAIRWISE + [aot_unpaired_loss])
def test_extreme_log_ratios_stay_finite_in_value_and_gradient(loss, dtype):
    for beta in (0.1, 1.0):
        pair = torch.tensor(EXTREMES, dtype=dtype).T.requires_grad_()
        losses = loss(*pair, beta=beta)
        losses.sum().backward()
        assert losses.dtype == dtype and losses.isfinite().all() and pair.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("link", LINKS)
def test_links_of_extreme_log_ratios_stay_finite_under_the_loss(link, dtype):
    pair = torch.tensor(EXTREMES, dtype=dtype).T.requires_grad_()
    losses = dpo_sigmoid_loss(*(link(x) for x in pair))
    losses.sum().backward()
    assert losses.isfinite().all() and pair.grad.isfinite().all()


@pytest.mark.parametrize("loss", PAIRWISE + [aot_unpaired_loss])
def test_bf16_is_close_to_fp64(loss):
    # bf16 holds 8 bits: 0.4% a number; two or three roundings
    pair = (3 * randn(3, 2, 32)).bfloat16()
    assert_close(loss(*pair).double(), loss(*pair.double()), rtol=0.03, atol=0.03)


@few
@given(st.floats(-8, 8), st.floats(0.05, 0.95))
def test_links_are_the_slope_of_their_divergence(x, alpha):
    # D_f = E_ref f(u), u = pi / pi_ref; the terms in u - 1 add nothing to the mean and make all slopes 0 at u = 1,
    # where the links are -1, -ln 2 and -1 / alpha. Forward KL: -log u. JS: u log u - (1 + u) log((1 + u) / 2)
    divergences = [
        (forward_kl_link, lambda u: -u.log() + u - 1),
        (js_link, lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log()),
        (
            partial(alpha_link, alpha=alpha),
            lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
        ),
    ]
    for link, f in divergences:
        u = f64(x).exp().requires_grad_()
        (slope,) = torch.autograd.grad(f(u), u)
        assert_close(link(f64(x)) - link(f64(0.0)), slope)


def test_alpha_1_is_the_forward_kl_and_alpha_0_the_identity_up_to_a_constant():
    x = f64([-3.0, -0.5, 0.0, 2.0, 7.0])
    assert torch.equal(alpha_link(x, alpha=1), forward_kl_link(x))
    # -exp(-a x) / a + 1 / a = x - a x^2 / 2 + ...
    assert_close(alpha_link(x, alpha=1e-6) + 1e6, x, atol=1e-4, rtol=0)


# ---- bad input


@pytest.mark.parametrize("loss", PAIRWISE)
def test_pairs_must_be_of_one_shape(loss):
    want = rf"^{loss.__name__}: needed .* got \{{'chosen_logratios': \(2,\), 'rejected_logratios': \(2, 1\)\}}"
    with pytest.raises(ValueError, match=want):
        loss(torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize("loss", PAIRWISE + [aot_unpaired_loss])
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_beta_must_be_positive(loss, beta):
    with pytest.raises(
        ValueError, match=f"^{loss.__name__}: beta must be > 0, got {beta}; it is the price of a nat of KL"
    ):
        loss(torch.zeros(2), torch.zeros(2), beta=beta)


@pytest.mark.parametrize("loss", SMOOTHED)
@pytest.mark.parametrize("e", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_must_be_below_a_half(loss, e):
    with pytest.raises(ValueError, match=rf"_loss: label_smoothing must be in \[0, 0.5\), got {e}; at 0.5 labels say"):
        loss(torch.zeros(2), torch.zeros(2), label_smoothing=e)


def test_exo_needs_some_smoothing():
    with pytest.raises(ValueError, match="^exo_loss: label_smoothing must be above 0, got 0; the paper takes 0.001"):
        exo_loss(torch.zeros(2), torch.zeros(2), label_smoothing=0.0)


@pytest.mark.parametrize("loss", [dpo_loss, aot_paired_loss])
@pytest.mark.parametrize("wrong", ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"])
def test_four_log_probs_must_be_of_one_shape(loss, wrong):
    names = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]
    four = {name: torch.zeros(1 if name == wrong else 3) for name in names}
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: needed tensors of one shape, .*\(1,\)"):
        loss(**four)


@pytest.mark.parametrize("loss", [dpo_loss, aot_paired_loss])
def test_four_log_probs_need_beta_and_smoothing_too(loss):
    names = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]
    four = {name: torch.zeros(3) for name in names}
    with pytest.raises(ValueError, match="beta must be > 0"):
        loss(**four, beta=0)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        loss(**four, label_smoothing=0.6)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_alpha_of_the_link_must_be_in_0_1(alpha):
    with pytest.raises(ValueError, match=rf"^alpha_link: alpha must be in \(0, 1\], got {alpha}"):
        alpha_link(torch.zeros(1), alpha=alpha)


def test_aot_refuses_a_matrix_and_discopop_a_temperature_of_0():
    matrix, row = torch.zeros(2, 2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"^aot_unpaired_loss: needed log-ratios \[B\], got \(2, 2\)$"):
        L.aot_unpaired_loss(matrix, matrix)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="^discopop_loss: temperature must be > 0, got"):
            L.discopop_loss(row, row, temperature=temperature)
