"""The clipped surrogate, the clipped value loss and the diagnostics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import (
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    ratio_diagnostics,
    sequence_mean,
)

seeds = st.integers(0, 2**31)
few = settings(max_examples=50)


def row(*numbers):
    return torch.tensor([numbers])


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def surrogate(ratios, advantages, **options):
    """The loss of tokens whose probability went from 0.1 to 0.1 r."""
    ratios = torch.as_tensor(ratios)
    old_logps = torch.full_like(ratios, 0.1).log()
    return ppo_policy_loss((0.1 * ratios).log(), old_logps=old_logps, advantages=torch.as_tensor(advantages), **options)


def test_clip_is_pessimistic():
    # eps 0.2, bounds 0.8 and 1.2. -min(r A, clip(r) A):
    # A = +1: r 2 -> -min(2, 1.2) = -1.2;   r 0.5 -> -min(0.5, 0.8) = -0.5;   r 1.1 -> -1.1
    # A = -1: r 2 -> -min(-2, -1.2) = 2;    r 0.5 -> -min(-0.5, -0.8) = 0.8;  r 0.9 -> 0.9
    losses = surrogate(row(2.0, 0.5, 1.1, 2.0, 0.5, 0.9), row(1.0, 1.0, 1.0, -1.0, -1.0, -1.0))
    assert_close(losses, row(-1.2, -0.5, -1.1, 2.0, 0.8, 0.9))


def test_clip_higher_moves_the_upper_bound_only():
    # bounds 0.8 and 1.28: A = +1, r 1.25 -> -1.25, r 2 -> -1.28; A = -1, r 0.5 -> 0.8
    ratios, advantages = row(1.25, 2.0, 0.5), row(1.0, 1.0, -1.0)
    assert_close(surrogate(ratios, advantages, clip_eps_high=0.28), row(-1.25, -1.28, 0.8))
    assert_close(surrogate(ratios, advantages), row(-1.2, -1.2, 0.8))


def test_clip_eps_of_1_or_more_leaves_the_ratio_open_below():
    # bounds -0.5 and 2.5: A = -1, r 0.01 -> 0.01, not a clipped value
    assert_close(surrogate(row(0.01, 3.0), row(-1.0, 1.0), clip_eps=1.5), row(0.01, -2.5))


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    # dual_clip 3, A = -2: r 5 -> min(10, 6) = 6; r 2 -> min(4, 6) = 4; r 0.5 -> clipped 1.6, under the bound
    # A = +2 is as before: r 5 -> -2.4; r 0.1 -> -0.2
    ratios, advantages = row(5.0, 2.0, 0.5, 5.0, 0.1), row(-2.0, -2.0, -2.0, 2.0, 2.0)
    assert_close(surrogate(ratios, advantages, dual_clip=3.0), row(6.0, 4.0, 1.6, -2.4, -0.2))
    assert_close(surrogate(ratios, advantages), row(10.0, 4.0, 1.6, -2.4, -0.2))


def test_gradient_vanishes_where_the_clip_acts_and_nowhere_else():
    # inside, d/dlogps of -r A is -r A; r = 2, A = -1 stays unclipped: +2
    logps = row(2.0, 0.5, 1.1, 2.0, 0.5).log().requires_grad_()
    advantages = row(1.0, 1.0, 1.0, -1.0, -1.0)
    ppo_policy_loss(logps, old_logps=torch.zeros(1, 5), advantages=advantages).sum().backward()
    assert_close(logps.grad, row(0.0, -0.5, -1.1, 2.0, 0.0))


def test_value_loss_by_hand():
    # old 0, eps 0.2. V 1, R 0: max(1, 0.2^2) / 2 = 0.5.  V 1, R 1: max(0, 0.8^2) / 2 = 0.32.  V 0.1, R 1: 0.81 / 2
    # V -1, R -1: max(0, 0.8^2) / 2 = 0.32.  V -1, R 1: max(4, 1.44) / 2 = 2
    parts = {"old_values": torch.zeros(1, 5), "returns": row(0.0, 1.0, 1.0, -1.0, 1.0)}
    values = row(1.0, 1.0, 0.1, -1.0, -1.0)
    assert_close(ppo_value_loss(values, **parts), row(0.5, 0.32, 0.405, 0.32, 2.0))
    assert_close(ppo_value_loss(values, **parts, clip_eps=None), row(0.5, 0.0, 0.405, 0.0, 2.0))
    assert_close(ppo_value_loss(values, **parts, clip_eps=0.5), row(0.5, 0.125, 0.405, 0.125, 2.0))


def test_value_clip_is_around_the_old_value():
    # old 3, V 4, R 4: clipped 3.2, (3.2 - 4)^2 / 2 = 0.32
    assert_close(ppo_value_loss(row(4.0), old_values=row(3.0), returns=row(4.0)), row(0.32))


def test_diagnostics_by_hand():
    # approx_kl = r - 1 - ln r: r 2: 1 - 0.693147 = 0.306853; r 1/2: -1/2 + 0.693147 = 0.193147
    # clipped: r over 1.2 where A > 0, under 0.8 where A < 0; never where A = 0
    ratios = row(2.0, 0.5, 2.0, 0.5, 2.0, 0.5, 1.1)
    advantages = row(1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 1.0)
    seen = ratio_diagnostics(ratios.log(), old_logps=torch.zeros(1, 7), advantages=advantages)
    assert set(seen) == {"ratio", "approx_kl", "clip_fraction"}
    assert_close(seen["ratio"], ratios)
    assert_close(seen["approx_kl"][:, :2], row(0.306853, 0.193147))
    assert_close(seen["clip_fraction"], row(1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))


def test_diagnostics_know_clip_higher_and_carry_no_gradient():
    logps = row(1.25, 1.3, 0.79, 0.85).log().requires_grad_()
    policy = {"old_logps": torch.zeros(1, 4), "advantages": row(1.0, 1.0, -1.0, -1.0)}
    seen = ratio_diagnostics(logps, **policy, clip_eps=0.2, clip_eps_high=0.28)
    assert_close(seen["clip_fraction"], row(0.0, 1.0, 1.0, 0.0))
    seen = ratio_diagnostics(logps, **policy, clip_eps=0.1)
    assert_close(seen["clip_fraction"], row(1.0, 1.0, 1.0, 1.0))
    assert not any(x.requires_grad for x in seen.values())


def test_golden_v0_11_4(golden):
    inputs, figures, mask = golden["inputs"], golden["ppo_v0_11_4"], golden["inputs"]["mask"]
    policy = {"old_logps": inputs["old"], "advantages": figures["adv_whiten0"]}
    assert masked_mean(ppo_policy_loss(inputs["logp"], **policy), mask).item() == pytest.approx(figures["pg_loss"])
    value = ppo_value_loss(inputs["vpred"], old_values=inputs["values"], returns=figures["returns_whiten0"])
    assert masked_mean(value, mask).item() == pytest.approx(figures["vf_loss"])


def test_golden_v0_11_4_statistics(golden):
    # its approxkl is k2 and its policykl k1 of KL(old || now): k2 is biased, k1 may be negative; ours is k3.
    # Its clip fraction counts tokens whose clipped branch is strictly worse, and so does ours
    inputs, stats, mask = golden["inputs"], golden["ppo_v0_11_4"]["stats"], golden["inputs"]["mask"]
    logps, old_logps = inputs["logp"], inputs["old"]
    seen = ratio_diagnostics(logps, old_logps=old_logps, advantages=golden["ppo_v0_11_4"]["adv_whiten0"])
    assert masked_mean(seen["clip_fraction"], mask).item() == pytest.approx(stats["policy/clipfrac"])
    assert masked_mean(kl_k2(old_logps, ref_logps=logps), mask).item() == pytest.approx(stats["policy/approxkl"])
    assert masked_mean(kl_k1(old_logps, ref_logps=logps), mask).item() == pytest.approx(stats["policy/policykl"])
    assert torch.equal(seen["approx_kl"], kl_k3(old_logps, ref_logps=logps))
    assert masked_mean(seen["approx_kl"], mask).item() == pytest.approx(0.0366, abs=5e-5)  # k2 says 0.0405, k1 0.0429


def test_golden_v2(golden):
    # the policy loss uses the mask of the tokens, the value loss a mask with one PAD more (see test_advantages)
    inputs, figures = golden["inputs"], golden["ppo_v2"]
    batch, losses = figures["k1_whiten0"], figures["loss_k1"]
    policy = ppo_policy_loss(inputs["logp"], old_logps=inputs["old"], advantages=batch["advantages"])
    assert masked_mean(policy, ~batch["padding_mask"]).item() == pytest.approx(losses["pg_loss"])
    value = ppo_value_loss(inputs["vpred"], old_values=inputs["values"], returns=batch["returns"])
    assert masked_mean(value, ~batch["padding_mask_p1"]).item() == pytest.approx(losses["vf_loss"])


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dapo", "dapo_clip_higher", "grpo_kl"])
def test_golden_grpo_family_is_our_surrogate_under_another_average(golden, name):
    # grpo averages rows, bnpo tokens, both over 2 accumulation steps; dapo divides by the 40 tokens of the whole batch
    inputs, figures, mask = golden["inputs"], golden["grpo_1_16"][name], golden["inputs"]["mask"]
    high = 0.28 if name == "dapo_clip_higher" else None
    logps = inputs["logp"].clone().requires_grad_()
    policy = {"old_logps": inputs["old"], "advantages": inputs["adv"][:, None].expand(4, 5), "clip_eps_high": high}
    losses = ppo_policy_loss(logps, **policy)
    if name == "grpo_kl":
        losses = losses + 0.04 * kl_k3(logps, ref_logps=inputs["ref"])
    if name.startswith("dapo"):
        loss = masked_mean(losses, mask, count=40)
    else:
        loss = (masked_mean if name == "bnpo" else sequence_mean)(losses, mask) / 2
    loss.backward()
    assert loss.item() == pytest.approx(figures["loss"])
    assert_close(logps.grad, figures["grad"])
    seen = ratio_diagnostics(logps, **policy)["clip_fraction"]
    assert masked_mean(seen, mask).item() == pytest.approx(figures["clipped"], rel=1e-6)  # printed from float32


@few
@given(seeds, st.floats(0.01, 2), st.none() | st.floats(0.01, 2), st.none() | st.floats(1.01, 5))
def test_ratio_1_gives_minus_a_in_value_and_gradient(seed, clip_eps, clip_eps_high, dual_clip):
    advantages, old_logps = randn(seed, 2, 3), -randn(seed + 1, 2, 3).abs()
    logps = old_logps.clone().requires_grad_()
    options = {"clip_eps": clip_eps, "clip_eps_high": clip_eps_high, "dual_clip": dual_clip}
    losses = ppo_policy_loss(logps, old_logps=old_logps, advantages=advantages, **options)
    assert_close(losses, -advantages)
    assert_close(torch.autograd.grad(losses.sum(), logps)[0], -advantages)


@few
@given(seeds, st.floats(0.05, 0.5), st.none() | st.floats(0.05, 0.5))
def test_clip_fraction_is_where_the_gradient_is_0_and_the_loss_is_never_below_the_unclipped(seed, eps, high):
    advantages, logps, old_logps = randn(seed, 2, 3), randn(seed + 1, 2, 3).requires_grad_(), randn(seed + 2, 2, 3)
    policy = {"old_logps": old_logps, "advantages": advantages, "clip_eps": eps, "clip_eps_high": high}
    losses, seen = ppo_policy_loss(logps, **policy), ratio_diagnostics(logps, **policy)
    (grad,) = torch.autograd.grad(losses.sum(), logps)
    assert torch.equal(grad == 0, seen["clip_fraction"] == 1)
    assert (losses >= -(logps - old_logps).exp() * advantages - 1e-12).all()
    assert (seen["approx_kl"] >= 0).all()


@few
@given(seeds, st.none() | st.floats(0.05, 2))
def test_clipped_value_loss_is_never_below_the_plain_one(seed, eps):
    values, old_values, returns = randn(seed, 3, 2, 3).unbind()
    losses = ppo_value_loss(values, old_values=old_values, returns=returns, clip_eps=eps)
    plain = 0.5 * (values - returns).square()
    assert (losses >= plain - 1e-12).all() and (eps is not None or torch.equal(losses, plain))
    unmoved = ppo_value_loss(old_values, old_values=old_values, returns=returns, clip_eps=eps)
    assert_close(unmoved, 0.5 * (old_values - returns).square())


@few
@given(seeds, st.permutations(range(4)))
def test_tokens_do_not_see_each_other(seed, order):
    a, b, c = randn(seed, 3, 4, 4).unbind()
    order = list(order)
    moved = [x[order][:, order] for x in (a, b, c)]

    def functions(a, b, c):
        seen = ratio_diagnostics(a, old_logps=b, advantages=c)
        policy = ppo_policy_loss(a, old_logps=b, advantages=c, dual_clip=3.0)
        return policy, ppo_value_loss(a, old_values=b, returns=c), *seen.values()

    for got, want in zip(functions(*moved), functions(a, b, c), strict=True):
        assert_close(got, want[order][:, order])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("logp, old_logp", [(-1e4, 0.0), (0.0, -1e4), (-1e4, -1e4), (0.0, 0.0)])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(logp, old_logp, advantage):
    logps = row(logp).requires_grad_()
    policy = {"old_logps": row(old_logp), "advantages": row(advantage)}
    for options in ({}, {"dual_clip": 3.0}):
        losses = ppo_policy_loss(logps, **policy, **options)
        assert losses.isfinite().all() and torch.autograd.grad(losses.sum(), logps)[0].isfinite().all()
    assert all(x.isfinite().all() for x in ratio_diagnostics(logps, **policy).values())


@pytest.mark.parametrize("junk", [1e30, -1e30])
@pytest.mark.parametrize("dirty", ["old", "target"])
def test_finite_junk_in_padding_reaches_neither_an_averaged_loss_nor_its_gradient(dirty, junk):
    # the losses take no mask, so padding must be finite (the contract says 0); the average then keeps it out
    mask = torch.tensor([[True, True, False], [True, False, False]])
    results = []
    for filling in (0.0, junk):
        x, old, target = randn(0, 3, 2, 3).float().unbind()
        (old if dirty == "old" else target)[~mask] = filling
        x = x.clone().requires_grad_()
        policy = masked_mean(ppo_policy_loss(x, old_logps=old, advantages=target, dual_clip=3.0), mask)
        value = masked_mean(ppo_value_loss(x, old_values=old, returns=target), mask)
        results.append((policy, value, *(torch.autograd.grad(loss, x)[0] for loss in (policy, value))))
    for clean, dirtied in zip(*results, strict=True):
        assert torch.equal(clean, dirtied)
    assert not any(grad[~mask].any() for grad in results[1][2:])


def test_policy_gradient_numerically():
    # ratios away from the kinks at 0.8, 1.2 and, for A < 0, 3
    logps = torch.tensor([[0.5, 0.9, 1.1, 1.5, 2.0, 4.0]], dtype=torch.float64).log().repeat(2, 1).requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 6).clone().requires_grad_()
    old_logps = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"clip_eps_high": 0.28}, {"dual_clip": 3.0}):

        def loss(logps, old_logps, advantages, options=options):
            return ppo_policy_loss(logps, old_logps=old_logps, advantages=advantages, **options)

        assert torch.autograd.gradcheck(loss, (logps, old_logps, advantages))


def test_value_gradient_numerically():
    # |V - V_old| away from 0.2 and the two squares apart
    values = torch.tensor([[0.1, 1.0, -0.1, -1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[1.0, 0.9, 2.0, -2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    for eps in (0.2, None):

        def loss(values, returns, eps=eps):
            return ppo_value_loss(values, old_values=torch.zeros_like(values), returns=returns, clip_eps=eps)

        assert torch.autograd.gradcheck(loss, (values, returns))


def test_shapes_must_agree():
    x = torch.zeros(2, 3)
    for function in (ppo_policy_loss, ratio_diagnostics):
        text = r"needed tensors of one shape, got .*'old_logps': \(2, 3\), 'advantages': \(2, 1\)\}"
        with pytest.raises(ValueError, match=f"^{function.__name__}: {text}"):
            function(x, old_logps=x, advantages=x[:, :1])
        with pytest.raises(ValueError, match=f"^{function.__name__}: needed"):
            function(x, old_logps=x[:1], advantages=x)
    for parts in ({"old_values": x[:, 1:], "returns": x}, {"old_values": x, "returns": x[:1]}):
        with pytest.raises(ValueError, match="^ppo_value_loss: needed tensors of one shape"):
            ppo_value_loss(x, **parts)


@pytest.mark.parametrize("low, high", [(0, None), (-0.1, None), (0, 0.2), (0.2, 0), (0.2, -1), (float("nan"), None)])
def test_clip_ranges_must_be_positive(low, high):
    x = torch.zeros(1, 1)
    got = f"got {low} and {low if high is None else high}"
    with pytest.raises(ValueError, match=f"^ppo_policy_loss: clip_eps and clip_eps_high must be > 0, {got}$"):
        ppo_policy_loss(x, old_logps=x, advantages=x, clip_eps=low, clip_eps_high=high)
    if high is None:
        with pytest.raises(ValueError, match=f"^ppo_value_loss: clip_eps must be > 0, got {low}; None turns clipping"):
            ppo_value_loss(x, old_values=x, returns=x, clip_eps=low)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, -3.0, 0, float("nan")])
def test_dual_clip_must_exceed_1(dual_clip):
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=f"^ppo_policy_loss: dual_clip must be > 1, got {dual_clip}; None turns it"):
        ppo_policy_loss(x, old_logps=x, advantages=x, dual_clip=dual_clip)


def test_clip_fraction_counts_tokens_that_the_dual_clip_stops():
    # ratio 5 with A = -1: the plain clip leaves the gradient (the worse branch), dual_clip 3 takes it away
    logps, old_logps = torch.tensor([[math.log(5.0)]]), torch.zeros(1, 1)
    advantages = torch.tensor([[-1.0]])
    plain = ratio_diagnostics(logps, old_logps=old_logps, advantages=advantages)
    dual = ratio_diagnostics(logps, old_logps=old_logps, advantages=advantages, dual_clip=3.0)
    assert plain["clip_fraction"].item() == 0 and dual["clip_fraction"].item() == 1


def test_clip_fraction_counts_a_dual_clip_only_where_the_advantage_is_negative_and_the_ratio_beyond_it():
    # dual_clip 3, bounds 0.8 and 1.2: r 1 and A < 0 is free; r 5 is clipped if A < 0; A = 0 has no gradient
    ratios, advantages = row(1.0, 5.0, 5.0, 0.5), row(-1.0, -1.0, 0.0, 0.0)
    old_logps = torch.full_like(ratios, 0.1).log()
    found = ratio_diagnostics((0.1 * ratios).log(), old_logps=old_logps, advantages=advantages, dual_clip=3.0)
    assert found["clip_fraction"].tolist() == [[0.0, 1.0, 0.0, 0.0]]
