"""From scores to rewards to advantages. Column t speaks about token t; B sequences, T tokens."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import gae, kl_k1, kl_k3, kl_shaped_rewards, masked_whiten

JUNK = [float("nan"), float("inf"), float("-inf"), 1e30]
seeds = st.integers(0, 2**31)
unit = st.floats(0, 1)
masks = st.tuples(st.integers(1, 4), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda flat: torch.tensor(flat).reshape(shape)
    )
)
few = settings(max_examples=50)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(*numbers):
    return torch.tensor([numbers])


GAPS = torch.tensor([[False, True, False, True, True, False], [True] * 6, [False] * 6])


def test_shaped_rewards_by_hand():
    # d = ln 2 and -ln 2, kl_coef 0.5: -0.346574 and +0.346574, the score 3 on the last True column
    # k3: 1/2 - 1 + ln 2 = 0.193147 -> -0.096574;  2 - 1 - ln 2 = 0.306853 -> -0.153426, + 3
    logps, ref_logps = row(9.0, 0.5, 0.25, 9.0).log(), row(7.0, 0.25, 0.5, 7.0).log()
    mask, scores = row(False, True, True, False), torch.tensor([3.0])
    shaped = kl_shaped_rewards(scores, logps=logps, ref_logps=ref_logps, mask=mask, kl_coef=0.5)
    assert_close(shaped, row(0.0, -0.346574, 3.346574, 0.0))
    shaped = kl_shaped_rewards(scores, logps=logps, ref_logps=ref_logps, mask=mask, kl_coef=0.5, estimator="k3")
    assert_close(shaped, row(0.0, -0.096574, 2.846574, 0.0))


def test_score_lands_on_the_last_true_column_whatever_the_gaps_and_on_none_in_an_empty_row():
    zeros = torch.zeros(3, 6)
    shaped = kl_shaped_rewards(torch.tensor([1.0, 2.0, 4.0]), logps=zeros, ref_logps=zeros, mask=GAPS, kl_coef=0.1)
    want = torch.zeros(3, 6)
    want[0, 4], want[1, 5] = 1.0, 2.0
    assert_close(shaped, want)


def test_scores_take_the_dtype_of_the_log_probs():
    zeros, scores = torch.zeros(1, 2), torch.ones(1, dtype=torch.float64)
    shaped = kl_shaped_rewards(scores, logps=zeros, ref_logps=zeros, mask=row(True, True), kl_coef=0.1)
    assert_close(shaped, row(0.0, 1.0))


def test_gae_by_hand():
    # gamma = lam = 1/2. deltas from the end: 4 - 2 = 2;  2 + 0.5 * 2 - 1 = 2;  1 + 0.5 * 1 - 3 = -1.5
    # A: 2;  2 + 0.25 * 2 = 2.5;  -1.5 + 0.25 * 2.5 = -0.875.  returns = A + V
    rewards, values, mask = row(1.0, 2.0, 4.0), row(3.0, 1.0, 2.0), row(True, True, True)
    advantages, returns = gae(rewards, values=values, mask=mask, gamma=0.5, lam=0.5)
    assert_close(advantages, row(-0.875, 2.5, 2.0))
    assert_close(returns, row(2.125, 3.5, 4.0))


def test_gae_defaults_are_gamma_1_and_lam_095():
    # deltas: 1 - 2 = -1;  0 + 2 - 1 = 1.  A: -1;  1 + 0.95 * -1 = 0.05
    advantages, returns = gae(row(0.0, 1.0), values=row(1.0, 2.0), mask=row(True, True))
    assert_close(advantages, row(0.05, -1.0))
    assert_close(returns, row(1.05, 1.0))


def test_gae_steps_over_gaps():
    # the row of the test above, with a tool's answer in the middle and padding around it: the same advantages
    mask = row(False, True, False, False, True, False)
    rewards, values = row(5.0, 0.0, 5.0, 5.0, 1.0, 5.0), row(7.0, 1.0, 7.0, 7.0, 2.0, 7.0)
    advantages, returns = gae(rewards, values=values, mask=mask)
    assert_close(advantages, row(0.0, 0.05, 0.0, 0.0, -1.0, 0.0))
    assert_close(returns, row(0.0, 1.05, 0.0, 0.0, 1.0, 0.0))


def test_golden_v0_11_4(golden):
    # gamma 0.99, lam 0.95, kl_coef 0.2, log-probs of the old policy. Its rewards keep the KL outside the mask, but its
    # GAE zeroes values and rewards there first, so returns agree everywhere. Its whitening leaves junk outside
    inputs, figures, mask = golden["inputs"], golden["ppo_v0_11_4"], golden["inputs"]["mask"]
    rewards = kl_shaped_rewards(inputs["scores"], logps=inputs["old"], ref_logps=inputs["ref"], mask=mask, kl_coef=0.2)
    assert_close(rewards, figures["rewards_kl"].where(mask, torch.zeros(())))
    advantages, returns = gae(rewards, values=inputs["values"], mask=mask, gamma=0.99)
    assert_close(returns, figures["returns_whiten0"])
    assert_close(masked_whiten(advantages, mask)[mask], figures["adv_whiten0"][mask])


def test_golden_v0_11_4_with_whitened_rewards_agrees_where_that_version_has_no_padding(golden):
    # TRL does not mask rewards again after whitening, so whitened padding flows back into every row with padding. Only
    # row 2 has no padding and can agree. Without our mask the other rows agree too, so the mask is the only difference
    inputs, figures, mask = golden["inputs"], golden["ppo_v0_11_4"], golden["inputs"]["mask"]
    rewards = figures["rewards_kl"].where(mask, torch.zeros(()))
    whitened = masked_whiten(rewards, mask, shift_mean=False)
    _, returns = gae(whitened, values=inputs["values"], mask=mask, gamma=0.99)
    agree = torch.isclose(returns, figures["returns_whiten1"]).all(-1)
    assert agree.tolist() == [False, False, True, False]
    mean, deviation = rewards[mask].mean(), (rewards[mask].var() + 1e-8).sqrt()
    leaking, everywhere = (rewards - mean) / deviation + mean, torch.ones_like(mask)
    _, returns = gae(leaking, values=inputs["values"].where(mask, torch.zeros(())), mask=everywhere, gamma=0.99)
    assert_close(returns, figures["returns_whiten1"])


@pytest.mark.parametrize("whiten", [0, 1])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_golden_v2(golden, estimator, whiten):
    # kl_coef 0.05, gamma 1, lam 0.95. It puts the score on the first PAD after EOS and fills log-probs of PADs with 1,
    # so its mask of rewards and values has one column more than its mask of tokens; the KL in that column is 1 - 1 = 0
    inputs, figures = golden["inputs"], golden["ppo_v2"][f"{estimator}_whiten{whiten}"]
    tokens, with_pad = ~figures["padding_mask"], ~figures["padding_mask_p1"]
    logps, ref_logps = (inputs[name].masked_fill(~tokens, 1.0) for name in ("old", "ref"))
    rewards = kl_shaped_rewards(
        figures["scores"], logps=logps, ref_logps=ref_logps, mask=with_pad, kl_coef=0.05, estimator=estimator
    )
    if whiten:
        rewards = masked_whiten(rewards, with_pad, shift_mean=False)
    assert_close(rewards, figures["rewards"])
    advantages, returns = gae(rewards, values=inputs["values"], mask=with_pad)
    assert_close(returns, figures["returns"])
    assert_close(masked_whiten(advantages, tokens), figures["advantages"])  # its n / (n - 1) is float32: off by 5e-8


def test_our_score_column_differs_from_v2_only_in_rows_with_padding(golden):
    # our own mask puts the score on EOS itself; rows without padding are the same
    inputs, figures = golden["inputs"], golden["ppo_v2"]["k1_whiten0"]
    mask = ~figures["padding_mask"]
    logps = {"logps": inputs["old"], "ref_logps": inputs["ref"]}
    rewards = kl_shaped_rewards(figures["scores"], **logps, mask=mask, kl_coef=0.05)
    full = mask.all(-1)
    assert full.tolist() == [False, True, True, False]
    assert_close(rewards[full], figures["rewards"][full])
    assert_close(rewards.sum(-1), figures["rewards"].sum(-1))


def shaped(estimator):
    def function(scores, logps, ref_logps, mask):
        return kl_shaped_rewards(scores, logps=logps, ref_logps=ref_logps, mask=mask, kl_coef=0.3, estimator=estimator)

    return function


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("dirty", [("logps",), ("ref_logps",), ("logps", "ref_logps")])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_junk_in_padding_reaches_neither_rewards_nor_gradient(estimator, dirty, junk):
    results = []
    for filling in (0.0, junk):
        parts = {"logps": randn(0, 3, 6), "ref_logps": randn(1, 3, 6)}
        for name in dirty:
            parts[name] = parts[name].masked_fill(~GAPS, filling)
        logps, ref_logps = parts["logps"].requires_grad_(), parts["ref_logps"].requires_grad_()
        rewards = shaped(estimator)(randn(2, 3), logps, ref_logps, GAPS)
        results.append((rewards, *torch.autograd.grad((rewards * randn(3, 3, 6)).sum(), (logps, ref_logps))))
    for clean, dirtied in zip(*results, strict=True):
        assert torch.equal(clean, dirtied) and not dirtied[~GAPS].any() and dirtied[GAPS].all()


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("dirty", [(0,), (1,), (0, 1)])
def test_junk_in_padding_reaches_neither_advantages_nor_gradient(dirty, junk):
    results = []
    for filling in (0.0, junk):
        parts = [randn(0, 3, 6), randn(1, 3, 6)]
        for i in dirty:
            parts[i] = parts[i].masked_fill(~GAPS, filling)
        rewards, values = (x.requires_grad_() for x in parts)
        advantages, returns = gae(rewards, values=values, mask=GAPS, gamma=0.9)
        loss = (advantages * randn(2, 3, 6) + returns * randn(3, 3, 6)).sum()
        results.append((advantages, returns, *torch.autograd.grad(loss, (rewards, values))))
    for clean, dirtied in zip(*results, strict=True):
        assert torch.equal(clean, dirtied) and not dirtied[~GAPS].any() and dirtied[GAPS].all()


def test_gradient():
    scores, a, b = (randn(0, *shape).requires_grad_() for shape in ((3,), (3, 6), (3, 6)))
    for function in (shaped("k1"), shaped("k3")):
        assert torch.autograd.gradcheck(lambda *x, f=function: f(*x, GAPS), (scores, a, b))
    assert torch.autograd.gradcheck(lambda rewards, values: gae(rewards, values=values, mask=GAPS, gamma=0.9), (a, b))


@few
@given(masks, seeds, unit)
def test_lam_1_is_the_discounted_sum_of_rewards_minus_values(mask, seed, gamma):
    rewards, values = randn(seed, 2, *mask.shape).unbind()
    advantages, returns = gae(rewards, values=values, mask=mask, gamma=gamma, lam=1.0)
    for b, t in mask.nonzero().tolist():
        later = rewards[b, t:][mask[b, t:]]
        discounted = (later * gamma ** torch.arange(len(later))).sum()
        assert_close(returns[b, t], discounted)
        assert_close(advantages[b, t], discounted - values[b, t])


@few
@given(masks, seeds, unit)
def test_lam_0_is_the_one_step_error(mask, seed, gamma):
    rewards, values = randn(seed, 2, *mask.shape).unbind()
    advantages, _ = gae(rewards, values=values, mask=mask, gamma=gamma, lam=0.0)
    for b in range(len(mask)):
        r, v = rewards[b][mask[b]], values[b][mask[b]]
        assert_close(advantages[b][mask[b]], r + gamma * torch.cat([v[1:], v.new_zeros(min(1, len(v)))]) - v)


@few
@given(masks, seeds, unit, unit)
def test_a_row_with_gaps_equals_the_compacted_row(mask, seed, gamma, lam):
    rewards, values = randn(seed, 2, *mask.shape).unbind()
    results = gae(rewards, values=values, mask=mask, gamma=gamma, lam=lam)
    for b in range(len(mask)):
        keep = mask[b]
        if keep.any():
            full = torch.ones(1, keep.sum(), dtype=torch.bool)
            compact = gae(rewards[b, keep][None], values=values[b, keep][None], mask=full, gamma=gamma, lam=lam)
            for got, want in zip(results, compact, strict=True):
                assert_close(got[b, keep], want[0])
        assert not any(x[b, ~keep].any() for x in results)


@few
@given(masks, seeds)
def test_shaped_rewards_of_a_row_sum_to_its_score_minus_the_kl(mask, seed):
    logps, ref_logps = randn(seed, 2, *mask.shape).unbind()
    scores = randn(seed + 1, len(mask))
    for estimator, kl in (("k1", kl_k1), ("k3", kl_k3)):
        rewards = shaped(estimator)(scores, logps, ref_logps, mask)
        penalty = torch.where(mask, kl(logps, ref_logps=ref_logps), 0).sum(-1)
        assert_close(rewards.sum(-1), scores * mask.any(-1) - 0.3 * penalty)


@few
@given(masks, seeds)
def test_rows_do_not_see_each_other(mask, seed):
    rewards, values = randn(seed, 2, *mask.shape).unbind()
    scores, order = randn(seed + 1, len(mask)), randn(seed, len(mask)).argsort()

    def functions(scores, a, b, mask):
        return *gae(a, values=b, mask=mask), shaped("k1")(scores, a, b, mask)

    moved = functions(scores[order], rewards[order], values[order], mask[order])
    for got, want in zip(moved, functions(scores, rewards, values, mask), strict=True):
        assert torch.equal(got, want[order])


def test_empty_mask_gives_0():
    x, mask = randn(0, 2, 3), torch.zeros(2, 3, dtype=torch.bool)
    assert not any(part.any() for part in gae(x, values=x, mask=mask))
    assert not shaped("k1")(randn(1, 2), x, x + 1, mask).any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("a, b", [(-1e4, 0.0), (0.0, -1e4)])
def test_extreme_log_probs_stay_finite(estimator, a, b):
    logps = row(a).requires_grad_()
    rewards = shaped(estimator)(torch.ones(1), logps, row(b), row(True))
    rewards.sum().backward()
    assert rewards.isfinite().all() and logps.grad.isfinite().all()


def test_inputs_are_not_written_to():
    rewards, values, mask = randn(0, 3, 6), randn(1, 3, 6), GAPS.clone()
    before = [x.clone() for x in (rewards, values, mask)]
    gae(rewards, values=values, mask=mask)
    shaped("k1")(randn(2, 3), rewards, values, mask)
    assert all(torch.equal(x, y) for x, y in zip((rewards, values, mask), before, strict=True))


@pytest.mark.parametrize("estimator", ["abs", "mse", "full", "K1", "", None])
def test_other_forms_of_kl_in_the_reward_are_refused_by_name(estimator):
    x = torch.zeros(1, 2)
    text = rf"^kl_shaped_rewards: estimator must be k1 \(exact\), k2 or k3 \(both biased\), got {estimator!r}; see"
    with pytest.raises(ValueError, match=text):
        kl_shaped_rewards(torch.zeros(1), logps=x, ref_logps=x, mask=x.bool(), kl_coef=0.1, estimator=estimator)


def test_shapes_and_mask_dtype_are_checked():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for scores in (torch.zeros(3), torch.zeros(2, 1), torch.zeros(())):
        text = f"kl_shaped_rewards: needed scores [2], one per row, got {tuple(scores.shape)}"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            shaped("k1")(scores, x, x, mask)
    with pytest.raises(ValueError, match=r"^kl_shaped_rewards: needed tensors of one shape.*'ref_logps': \(2, 2\)"):
        shaped("k1")(torch.zeros(2), x, x[:, 1:], mask)
    with pytest.raises(ValueError, match="^kl_shaped_rewards: mask must be bool"):
        shaped("k1")(torch.zeros(2), x, x, mask.long())
    with pytest.raises(ValueError, match=r"^gae: needed tensors of one shape, got .*'values': \(2, 1\)"):
        gae(x, values=x[:, :1], mask=mask)
    with pytest.raises(ValueError, match="^gae: mask must be bool with True = counts, got torch.float32"):
        gae(x, values=x, mask=mask.float())


@pytest.mark.parametrize("gamma, lam", [(-0.1, 1.0), (1.1, 1.0), (1.0, -0.1), (1.0, 1.1), (float("nan"), 1.0)])
def test_gamma_and_lam_lie_in_0_to_1(gamma, lam):
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=rf"^gae: gamma and lam must be in \[0, 1\], got {gamma} and {lam}$"):
        gae(x, values=x, mask=torch.ones(1, 2, dtype=torch.bool), gamma=gamma, lam=lam)
