"""XPO's bonus and Nash-MD's loss."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import dpo_sigmoid_loss, nash_md_loss, sum_logps, xpo_bonus

LN2 = math.log(2)
seeds = st.integers(0, 2**31)
f64 = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40)


def bools(*rows):
    return torch.tensor(rows) == 1


def batch(seed, rows=3, tokens=5):
    """logps, ref_logps, mask, win_prob of some completions; a mask has gaps and an end, and may be empty."""
    generator = torch.Generator().manual_seed(seed)
    logps, ref_logps = -torch.rand(2, rows, tokens, generator=generator, dtype=torch.float64) * 4
    mask = torch.rand(rows, tokens, generator=generator) > 0.4
    return logps, ref_logps, mask, torch.rand(rows, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def figures():
    return json.loads(Path(__file__).with_name("golden_preference.json").read_text())


@pytest.fixture(scope="module")
def tokens(figures):
    parts = {name: f64(figures["tokens"][name]) for name in ("logp", "old", "ref")}
    return parts | {"mask": f64(figures["tokens"]["mask"]) == 1}


def test_xpo_bonus_by_hand():
    # 0.5 * (-1 - 3) and 0.5 * -2; an empty row gives 0
    logps = torch.tensor([[-1.0, -9.0, -3.0], [-9.0, -9.0, -2.0], [-9.0, -9.0, -9.0]])
    mask = bools([1, 0, 1], [0, 0, 1], [0, 0, 0])
    assert_close(xpo_bonus(logps, mask=mask, alpha=0.5), torch.tensor([-2.0, -1.0, 0.0]))
    assert_close(xpo_bonus(logps, mask=mask, alpha=0.0), torch.zeros(3))


def test_nash_md_by_hand():
    # row 1: win 3/4, log pi = -1 - 2 = -3, gaps -1 + 1.5 = 0.5 and -2 + 1 = -1: -(1/4 * -3 - 0.1 (-0.5 + 2)) = 0.9
    # row 2: win 1/2: only the KL, gap 2 at a log-prob of -1: 0.1 * -2.   row 3: no token
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-9.0, -1.0, -9.0], [-9.0, -9.0, -9.0]])
    ref_logps = torch.tensor([[-1.5, -1.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    mask = bools([1, 1, 0], [0, 1, 0], [0, 0, 0])
    win_prob = torch.tensor([0.75, 0.5, 1.0])
    losses = nash_md_loss(logps, ref_logps=ref_logps, mask=mask, win_prob=win_prob, beta=0.1)
    assert_close(losses, torch.tensor([0.9, -0.2, 0.0]))


def test_golden_xpo(figures, tokens):
    # alpha 0.01, beta 0.1. The policy's log-probs of its own answers are `logp`, of the reference's `old`; the
    # reference's are `ref` and 1.1 `ref`. In rows 0 and 2 the policy's answer wins, in 1 and 3 the reference's
    figures, total = figures["xpo"], partial(sum_logps, mask=tokens["mask"])
    bonus = xpo_bonus(tokens["old"], mask=tokens["mask"], alpha=0.01)
    own, other = total(tokens["logp"] - tokens["ref"]), total(tokens["old"] - 1.1 * tokens["ref"])
    own_wins = torch.tensor([True, False, True, False])
    losses = dpo_sigmoid_loss(torch.where(own_wins, own, other), torch.where(own_wins, other, own))
    assert_close(bonus, f64(figures["bonus"]))
    assert_close(losses, f64(figures["dpo"]))
    assert (losses + bonus).mean().item() == pytest.approx(figures["loss"])


def test_golden_nash_md(figures, tokens):
    # scores 1, -1, 0, 2 above the opponent's; beta 0.1. Its "score" is ours without the KL, not negated
    figures, win_prob = figures["nash_md"], f64([1.0, -1.0, 0.0, 2.0]).sigmoid()
    loss = partial(nash_md_loss, tokens["logp"], ref_logps=tokens["ref"], mask=tokens["mask"], win_prob=win_prob)
    assert loss(beta=0.1).mean().item() == pytest.approx(figures["loss"])
    assert_close(-loss(beta=0.0), f64(figures["score"]))
    log_ratios = sum_logps(tokens["logp"] - tokens["ref"], tokens["mask"])
    assert_close(log_ratios, f64(figures["logratios"]), atol=1e-12, rtol=1e-9)


@few
@given(seeds, st.floats(0, 2))
def test_gradient_of_the_bonus_is_alpha_on_the_mask(seed, alpha):
    logps, _, mask, _ = batch(seed)
    logps[~mask] = math.nan  # junk
    logps.requires_grad_()
    losses = xpo_bonus(logps, mask=mask, alpha=alpha)
    losses.sum().backward()
    assert losses.isfinite().all() and torch.equal(logps.grad, alpha * mask.double())


@few
@given(seeds, st.floats(0, 2))
def test_gradient_of_nash_md_is_that_of_a_policy_gradient_with_a_token_wise_kl(seed, beta):
    # d / d logps_t = -((win - 1/2) - beta (logps_t - ref_logps_t)), on the mask; 0 elsewhere
    logps, ref_logps, mask, win_prob = batch(seed)
    want = torch.where(mask, beta * (logps - ref_logps) - (win_prob[:, None] - 0.5), 0)
    logps[~mask] = math.nan
    ref_logps[~mask] = math.inf
    logps.requires_grad_(), ref_logps.requires_grad_()
    losses = nash_md_loss(logps, ref_logps=ref_logps, mask=mask, win_prob=win_prob, beta=beta)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert_close(logps.grad, want)
    assert ref_logps.grad is None


def test_gradcheck():
    # Nash-MD without its KL: the detached log-ratio would mislead finite differences
    logps, ref_logps, mask, win_prob = batch(0)
    logps.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: xpo_bonus(x, mask=mask, alpha=0.3), logps)
    policy = {"ref_logps": ref_logps, "mask": mask, "win_prob": win_prob, "beta": 0.0}
    assert torch.autograd.gradcheck(lambda x: nash_md_loss(x, **policy), logps)


@few
@given(seeds, st.randoms(use_true_random=False))
def test_rows_do_not_see_each_other(seed, random):
    logps, ref_logps, mask, win_prob = batch(seed, rows=4)
    order = random.sample(range(4), 4)

    def both(rows):
        parts = {"ref_logps": ref_logps[rows], "mask": mask[rows], "win_prob": win_prob[rows], "beta": 0.1}
        return torch.stack([nash_md_loss(logps[rows], **parts), xpo_bonus(logps[rows], mask=mask[rows], alpha=0.1)])

    whole = both(slice(None))
    assert_close(both(order), whole[:, order])
    assert_close(torch.cat([both(slice(0, 3)), both(slice(3, 4))], dim=1), whole)


@few
@given(seeds)
def test_two_equal_players_move_only_to_the_reference(seed):
    logps, ref_logps, mask, win_prob = batch(seed)
    even = torch.full_like(win_prob, 0.5)
    at_ref = nash_md_loss(logps, ref_logps=logps, mask=mask, win_prob=even, beta=0.7)
    assert torch.equal(at_ref, torch.zeros_like(at_ref))
    # the probability to lose is the opponent's probability to win
    win = partial(nash_md_loss, logps, ref_logps=ref_logps, mask=mask, beta=0.0)
    assert_close(win(win_prob=win_prob), -win(win_prob=1 - win_prob))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(dtype):
    logps = torch.tensor([[-1e4, 0.0], [0.0, -1e4]], dtype=dtype, requires_grad=True)
    ref_logps, mask = torch.tensor([[0.0, -1e4], [0.0, 0.0]], dtype=dtype), torch.ones(2, 2, dtype=torch.bool)
    win_prob = torch.tensor([0.0, 1.0], dtype=dtype)
    losses = nash_md_loss(logps, ref_logps=ref_logps, mask=mask, win_prob=win_prob, beta=0.1)
    losses = losses + xpo_bonus(logps, mask=mask, alpha=0.1)
    losses.sum().backward()
    assert losses.isfinite().all() and logps.grad.isfinite().all()


def test_bf16_is_close_to_fp64():
    logps, ref_logps, mask, win_prob = batch(1, rows=16)
    brief = [x.bfloat16() for x in (logps, ref_logps, win_prob)]

    def losses(logps, ref_logps, win_prob):
        nash = nash_md_loss(logps, ref_logps=ref_logps, mask=mask, win_prob=win_prob, beta=0.1)
        return nash + xpo_bonus(logps, mask=mask, alpha=0.1)

    assert_close(losses(*brief).double(), losses(*(x.double() for x in brief)), rtol=0.05, atol=0.05)


def test_bad_input_is_refused():
    logps, mask, win_prob = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)
    with pytest.raises(ValueError, match="^xpo_bonus: mask must be bool .*float32"):
        xpo_bonus(logps, mask=mask.float(), alpha=0.1)
    with pytest.raises(ValueError, match=r"^xpo_bonus: .*'mask': \(2, 2\), 'logps': \(2, 3\)"):
        xpo_bonus(logps, mask=mask[:, :2], alpha=0.1)
    with pytest.raises(ValueError, match="^xpo_bonus: alpha must be at least 0, got -0.1"):
        xpo_bonus(logps, mask=mask, alpha=-0.1)
    parts = {"ref_logps": logps, "mask": mask, "win_prob": win_prob, "beta": 0.1}
    with pytest.raises(ValueError, match="^nash_md_loss: mask must be bool .*int64"):
        nash_md_loss(logps, **parts | {"mask": mask.long()})
    with pytest.raises(ValueError, match=r"^nash_md_loss: .*'ref_logps': \(2, 1\)"):
        nash_md_loss(logps, **parts | {"ref_logps": logps[:, :1]})
    with pytest.raises(ValueError, match=r"^nash_md_loss: .*'win_prob': \(2, 1\), 'rows': \(2,\)"):
        nash_md_loss(logps, **parts | {"win_prob": win_prob[:, None]})


def test_nash_md_refuses_a_negative_beta():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="^nash_md_loss: beta must be at least 0, got -0.1$"):
        nash_md_loss(x, ref_logps=x, mask=mask, win_prob=torch.ones(1), beta=-0.1)
