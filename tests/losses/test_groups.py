"""Advantages without a value function: groups, leave-one-out, greedy, batch. NaN is a score that no judge gave."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import (
    bnpo_advantages,
    discounted_returns,
    equal_groups,
    gdpo_advantages,
    group_advantages,
    kl_shaped_rewards,
    masked_moments,
    overlong_penalty,
    remax_advantages,
    rloo_advantages,
    turn_returns,
    weighted_scores,
    whiten_judged,
)

NAN = math.nan
seeds = st.integers(0, 2**31)
sizes = st.integers(2, 5)
few = settings(max_examples=25)
GROUPED = {
    "group": group_advantages,
    "batch": lambda scores, size: group_advantages(scores, size, "batch"),
    "none": lambda scores, size: group_advantages(scores, size, "none"),
    "rloo": rloo_advantages,
    "gdpo": lambda scores, size: gdpo_advantages(scores[:, None], scores.new_ones(1), size).nan_to_num(0.0),
    "bnpo": bnpo_advantages,
}
grouped = pytest.mark.parametrize("name", list(GROUPED))


def scores_of(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def rand(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(scores):
    return masked_moments(scores, ~scores.isnan())


def test_shaped_rewards_with_k2_by_hand():
    # d = ln 2 and -ln 2: d^2 / 2 = 0.240227, kl_coef 0.5: -0.120113 twice, the score 3 on the last True column
    logps, ref_logps = torch.tensor([[9.0, 0.5, 0.25, 9.0]]).log(), torch.tensor([[7.0, 0.25, 0.5, 7.0]]).log()
    parts = {"logps": logps, "ref_logps": ref_logps, "mask": torch.tensor([[False, True, True, False]])}
    shaped = kl_shaped_rewards(torch.tensor([3.0]), **parts, kl_coef=0.5, estimator="k2")
    assert_close(shaped, torch.tensor([[0.0, -0.120113, 2.879887, 0.0]]))


def test_k2_rewards_never_pay_and_keep_padding_out():
    mask = torch.tensor([[False, True, True, False]])
    parts = {"mask": mask, "kl_coef": 0.3, "estimator": "k2"}
    logps, ref_logps = rand(0, 2, 1, 4).unbind()
    clean = kl_shaped_rewards(torch.zeros(1), logps=logps, ref_logps=ref_logps, **parts)
    dirty = kl_shaped_rewards(torch.zeros(1), logps=logps.where(mask, NAN), ref_logps=ref_logps, **parts)
    assert torch.equal(dirty, clean) and (clean[mask] < 0).all() and not clean[~mask].any()


def test_discounted_returns_by_hand_step_over_gaps():
    # gamma 1/2: 4;  2 + 4 / 2 = 4;  1 + 4 / 2 = 3. Without discount 4, 6, 7
    mask = torch.tensor([[True, False, True, True, False]])
    rewards = torch.tensor([[1.0, NAN, 2.0, 4.0, 9.0]])
    assert_close(discounted_returns(rewards, mask=mask, gamma=0.5), torch.tensor([[3.0, 0.0, 4.0, 4.0, 0.0]]))
    assert_close(discounted_returns(rewards, mask=mask), torch.tensor([[7.0, 0.0, 6.0, 4.0, 0.0]]))
    with pytest.raises(ValueError, match=r"gamma and lam must be in \[0, 1\], got 1.5"):
        discounted_returns(rewards, mask=mask, gamma=1.5)
    with pytest.raises(ValueError, match="mask must be bool"):
        discounted_returns(rewards, mask=mask.long())


def test_weighted_scores_by_hand():
    # 1 + 0.5 / 2 = 1.25; only the second: 2 / 2 = 1; none applies: NaN, not 0
    scores = torch.tensor([[1.0, 0.5], [NAN, 2.0], [NAN, NAN]])
    got = weighted_scores(scores, torch.tensor([1.0, 0.5]))
    assert_close(got, torch.tensor([1.25, 1.0, NAN]), equal_nan=True)


def test_group_advantages_by_hand():
    # 1, 2, 3, 6: mean 3, var (4 + 1 + 0 + 9) / 3 = 14 / 3, std 2.160247 + 1e-4: -0.925783, -0.462891, 0, 1.388674
    scores = scores_of(1.0, 2.0, 3.0, 6.0)
    want = scores_of(-2.0, -1.0, 0.0, 3.0)
    assert_close(group_advantages(scores, 4, "none"), want)
    assert_close(group_advantages(scores, 4), want / 2.160346899, rtol=1e-8, atol=0)
    assert torch.equal(group_advantages(scores, 4), group_advantages(scores, 4, "group"))


def test_batch_scale_by_hand_and_with_moments_of_all_ranks():
    # 0, 2 | 4, 6: mean 3, var (9 + 1 + 1 + 9) / 3 = 20 / 3, std 2.581989 + 1e-4: 1 / 2.582089 = 0.387283
    # moments n 2, sum 0, squares 8: var 8, std 2.828427: 1 / 2.828527 = 0.353541
    scores, signs = torch.tensor([0.0, 2.0, 4.0, 6.0]), torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert_close(group_advantages(scores, 2, "batch"), 0.387283 * signs)
    assert_close(group_advantages(scores, 2, "batch", moments=tuple(scores_of(2.0, 0.0, 8.0))), 0.353541 * signs)


def test_a_score_that_is_nan_gets_0_and_has_no_part_in_mean_or_std():
    # 1, nan, 3: mean 2, std sqrt(2): -+ 1 / 1.414314 = 0.707057. Leave-one-out: 1 - 3 and 3 - 1
    scores = torch.tensor([1.0, NAN, 3.0])
    assert_close(group_advantages(scores, 3), torch.tensor([-0.707057, 0.0, 0.707057]))
    assert_close(group_advantages(scores, 3, "batch"), torch.tensor([-0.707057, 0.0, 0.707057]))
    assert_close(group_advantages(scores, 3, "none"), torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(rloo_advantages(scores, 3), torch.tensor([-2.0, 0.0, 2.0]))
    assert_close(whiten_judged(scores), torch.tensor([-0.707057, 0.0, 0.707057]))


@grouped
def test_nan_in_one_group_changes_nothing_elsewhere(name):
    # a single judged sample gets 0, and so does a group without a judged sample
    scores = scores_of(0.25, NAN, NAN, 0.0, 1.0, 1.0)
    got = GROUPED[name](scores, 3)
    assert got.isfinite().all() and not got[:3].any() and got[3] < 0 < got[4] == got[5]


@grouped
def test_a_group_without_a_judged_sample_gets_0(name):
    got = GROUPED[name](scores_of(NAN, NAN, 0.0, 1.0), 2)
    assert not got[:2].any() and got[2] < 0 < got[3]
    assert not GROUPED[name](scores_of(NAN, NAN), 2).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@grouped
def test_equal_rewards_give_exactly_0(name, dtype):
    # numbers whose sums and means are exact in every type
    for size in (2, 4, 8):
        assert not GROUPED[name](torch.tensor([0.25] * size + [1.0] * size + [0.0] * size, dtype=dtype), size).any()


@grouped
def test_equal_rewards_give_exactly_0_whatever_the_number(name):
    for size in (3, 5, 6, 7):
        for score in (0.1, 0.3, 0.7, 1 / 3):
            assert not GROUPED[name](torch.tensor([score] * size), size).any()


def test_golden(golden):
    # two reward functions with weights 1 and 0.5; groups of 4, some NaN. Its std is float32: off by 2e-8
    figures = golden["policy_family"]["advantages"]
    scores, weights = figures["scores"], figures["weights"]
    for scale in ("group", "batch", "none"):
        got = group_advantages(weighted_scores(scores, weights), 4, scale)
        assert_close(got, figures[scale], rtol=1e-7, atol=1e-8)
    # each function normalised, then the sum, then whitening over the batch
    assert_close(whiten_judged(gdpo_advantages(scores, weights, 4)), figures["gdpo"], rtol=1e-7, atol=1e-8)


def test_golden_rloo(golden):
    # 1, 2, 5, 8: 1 - 5 = -4;  2 - 14 / 3;  5 - 11 / 3;  8 - 8 / 3 = 16 / 3. The second group is the first plus 1
    figures = golden["policy_family"]["advantages"]
    advantages = rloo_advantages(figures["rloo_scores"], 4)
    assert_close(advantages, figures["rloo"], rtol=1e-10, atol=0)
    assert_close(whiten_judged(advantages), figures["rloo_whitened"], rtol=1e-7, atol=0)


def test_gdpo_by_hand_leaves_nan_where_no_function_applies():
    # columns 0, 2 | 1, 1 and 10, nan | nan, nan: column 1 gives -+ 1 / (sqrt(2) + 1e-4) = 0.707057, then 0, 0
    # column 2: a single judged sample gives 0. Weights 2, 3: -1.414114, 1.414114, 0, 0
    scores = torch.tensor([[0.0, 10.0], [2.0, NAN], [1.0, NAN], [1.0, NAN]])
    got = gdpo_advantages(scores, torch.tensor([2.0, 3.0]), 2)
    assert_close(got, torch.tensor([-1.414114, 1.414114, 0.0, 0.0]))
    scores[2] = NAN
    assert gdpo_advantages(scores, torch.tensor([2.0, 3.0]), 2).isnan().tolist() == [False, False, True, False]


def test_gdpo_does_not_let_a_wide_function_drown_a_narrow_one():
    # in units a thousand times larger the second function still adds as much as the first
    scores, weights = scores_of(*[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), scores_of(1.0, 1.0)
    alike = gdpo_advantages(scores, weights, 4)
    wide = gdpo_advantages(scores * scores_of(1.0, 1000.0), weights, 4)
    assert_close(wide, alike, rtol=1e-3, atol=1e-3)
    assert alike[1] == alike[2]  # a sum before the division would differ by a factor of a thousand
    summed = group_advantages(weighted_scores(scores * scores_of(1.0, 1000.0), weights), 4)
    assert summed[2] - summed[1] > 1


def test_whiten_judged_by_hand_and_with_moments_of_all_ranks():
    # 1, 2, 3: mean 2, std 1: -+ 1 / 1.0001.  moments n 3, sum 0, squares 8: mean 0, std 2: s / 2.0001
    scores = scores_of(1.0, 2.0, NAN, 3.0)
    assert_close(whiten_judged(scores), scores_of(-1.0, 0.0, 0.0, 1.0) / 1.0001)
    got = whiten_judged(scores, moments=tuple(scores_of(3.0, 0.0, 8.0)))
    assert_close(got, scores_of(1.0, 2.0, 0.0, 3.0) / 2.0001)
    assert not whiten_judged(scores_of(NAN, NAN)).any() and not whiten_judged(scores_of(5.0)).any()


def test_remax_by_hand():
    got = remax_advantages(torch.tensor([1.0, 2.0, NAN, 4.0]), greedy_scores=torch.tensor([3.0, 1.5, 1.0, NAN]))
    assert_close(got, torch.tensor([-2.0, 0.5, 0.0, 0.0]))
    with pytest.raises(ValueError, match="^remax_advantages: needed tensors of one shape"):
        remax_advantages(torch.zeros(3), greedy_scores=torch.zeros(1))


def test_bnpo_by_hand():
    # p = 1/4 and 3/4: mean 1/2, var 1/8, a + b = (1/4) / (1/8) - 1 = 1, so a = b = 1/2: Beta(7/6, 7/6)
    # its density at both p: (3/16)^(1/6) / B(7/6, 7/6) = 0.756543 / 0.722858 = 1.046600
    # scores 1, 0, 0, 0: 0.75 / 1.0466 = 0.716606, -0.25 / 1.0466 = -0.238869; the other group mirrors it
    scores = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
    up, down = 0.716606, 0.238869
    assert_close(bnpo_advantages(scores, 4), torch.tensor([up, -down, -down, -down, down, down, down, -up]))


def test_bnpo_takes_the_moments_of_the_groups_of_all_ranks():
    # n 2, mean 1/2, var 1/28: a + b = (1/4) 28 - 1 = 6, a = b = 3: Beta(2, 2), density 6 p (1 - p)
    # p 1/4: 1.125: 0.75 / 1.125 = 0.666667 and -0.222222;  p 1/2: 1.5: 0.333333
    moments = tuple(scores_of(2.0, 1.0, 1 / 28 + 0.5))
    assert_close(bnpo_advantages(scores_of(1.0, 0.0, 0.0, 0.0), 4, moments), scores_of(6.0, -2.0, -2.0, -2.0) / 9)
    assert_close(bnpo_advantages(scores_of(1.0, 0.0), 2, moments), scores_of(1.0, -1.0) / 3)
    whole = scores_of(1.0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0)
    moments = moments_of(whole.view(-1, 4).mean(-1))
    parts = [bnpo_advantages(part, 4, moments) for part in (whole[:4], whole[4:])]
    assert_close(torch.cat(parts), bnpo_advantages(whole, 4))


def test_bnpo_follows_a_skewed_law():
    # n 2, mean 1/4, var 3/208: a + b = (3/16) (208/3) - 1 = 12, a = 3, b = 9: Beta(2, 4), density 20 p (1 - p)^3
    # p 1/2: 1.25: 0.5 / 1.25 = 0.4.  p 1/4: 2.109375: 0.75 / 2.109375 = 0.355556 and -0.118519
    moments = tuple(scores_of(2.0, 0.5, 3 / 208 + 0.125))
    assert_close(bnpo_advantages(torch.tensor([1.0, 0.0]), 2, moments), torch.tensor([0.4, -0.4]))
    want = torch.tensor([0.355556, -0.118519, -0.118519, -0.118519])
    assert_close(bnpo_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, moments), want)


def test_bnpo_with_beta_of_three_halves_is_grpo():
    # a = b = 3/2: mean 1/2, a + b = 3, var (1/4) / 4 = 1/16. The density is (8 / pi) sqrt(p (1 - p)), and the std of a
    # group of G right or wrong answers is sqrt(p (1 - p) G / (G - 1)): for G = 4 bnpo = grpo sqrt(4/3) pi / 8
    moments = tuple(scores_of(2.0, 1.0, 1 / 16 + 0.5))
    for scores in (scores_of(1.0, 0, 0, 0), scores_of(1.0, 1, 0, 0), scores_of(1.0, 1, 1, 0)):
        grpo = group_advantages(scores, 4)
        assert_close(bnpo_advantages(scores, 4, moments), grpo * math.sqrt(4 / 3) * math.pi / 8, rtol=3e-4, atol=0)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.6], [1.0, 0.0, 1.0, 0.0]])
def test_bnpo_is_finite_where_all_groups_agree_or_are_at_the_edge(scores):
    got = bnpo_advantages(torch.tensor(scores), 2)
    assert got.isfinite().all() and torch.equal(got.view(-1, 2).any(-1), ~equal_groups(torch.tensor(scores), 2))


@pytest.mark.parametrize("score", [-0.1, 1.5, math.inf])
def test_bnpo_refuses_scores_outside_0_to_1(score):
    with pytest.raises(ValueError, match=r"^bnpo_advantages: needed scores in \[0, 1\], got "):
        bnpo_advantages(torch.tensor([0.0, NAN, 1.0, score]), 2)


def test_overlong_penalty_by_hand():
    # 10 tokens, buffer 4: free up to 6, then a quarter a token, -1 from 10 on
    lengths = torch.tensor([0, 5, 6, 7, 8, 10, 12])
    want = torch.tensor([0.0, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0])
    assert_close(overlong_penalty(lengths, max_tokens=10, buffer=4), want)
    want = torch.tensor([0.0, -0.5, -0.6, -0.7, -0.8, -1.0, -1.0])
    assert_close(overlong_penalty(lengths, max_tokens=10, buffer=10), want)


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_overlong_buffer_lies_within_the_limit(buffer):
    with pytest.raises(ValueError, match=f"^overlong_penalty: buffer must be in 1..max_tokens 10, got {buffer}$"):
        overlong_penalty(torch.tensor([3]), max_tokens=10, buffer=buffer)


def test_equal_groups_by_hand():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, NAN, NAN, NAN, 1.0, 0.1, 0.1])
    assert equal_groups(scores, 2).tolist() == [True, False, True, True, True]
    assert equal_groups(torch.tensor([1.0, NAN, 2.0, 3.0, NAN, 3.0]), 3).tolist() == [False, True]


@grouped
@few
@given(seed=seeds, size=sizes)
def test_advantages_of_a_group_have_mean_0(name, seed, size):
    got = GROUPED[name](rand(seed, 4 * size), size)
    assert_close(got.view(4, size).mean(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)


@grouped
@few
@given(seed=seeds, size=sizes)
def test_a_better_score_in_a_group_has_a_larger_advantage(name, seed, size):
    scores = rand(seed, 4 * size)
    got = GROUPED[name](scores, size).view(4, size)
    assert torch.equal(got.argsort(-1), scores.view(4, size).argsort(-1))


@pytest.mark.parametrize("name", ["group", "none", "rloo", "gdpo"])
@few
@given(seed=seeds, size=sizes, shift=st.floats(-100, 100))
def test_a_constant_added_to_a_group_changes_nothing(name, seed, size, shift):
    scores = rand(seed, 3 * size)
    shifted = scores.clone()
    shifted[:size] += shift
    assert_close(GROUPED[name](shifted, size), GROUPED[name](scores, size), rtol=1e-8, atol=1e-8)


@few
@given(seed=seeds, size=sizes, shift=st.floats(-100, 100))
def test_a_constant_added_to_all_scores_changes_no_batch_scale(seed, size, shift):
    scores = rand(seed, 3 * size)
    assert_close(group_advantages(scores + shift, size, "batch"), group_advantages(scores, size, "batch"))
    assert_close(whiten_judged(scores + shift), whiten_judged(scores))


@grouped
@few
@given(seed=seeds, size=sizes, order=st.permutations(range(4)))
def test_groups_and_their_members_may_come_in_any_order(name, seed, size, order):
    # every third score is missing
    scores = rand(seed, 4, size).masked_fill(rand(seed + 1, 4, size) < 0.3, NAN)
    scores[:, 0] = 0.5  # so that each group has a judged sample
    want, inner = GROUPED[name](scores.flatten(), size).view(4, size), rand(seed + 2, size).argsort()
    moved = scores[list(order)][:, inner].flatten()
    assert_close(GROUPED[name](moved, size).view(4, size), want[list(order)][:, inner])


@few
@given(seed=seeds, size=sizes)
def test_rloo_is_the_unscaled_group_advantage_times_g_over_g_minus_1(seed, size):
    scores = rand(seed, 4 * size)
    want = group_advantages(scores, size, "none") * size / (size - 1)
    assert_close(rloo_advantages(scores, size), want)
    others = [scores.view(4, size)[:, [j for j in range(size) if j != i]].mean(-1) for i in range(size)]
    assert_close(rloo_advantages(scores, size), (scores.view(4, size) - torch.stack(others, -1)).flatten())


@few
@given(seed=seeds, size=sizes)
def test_split_batches_with_global_moments_equal_the_whole(seed, size):
    scores = rand(seed, 4 * size).masked_fill(rand(seed + 1, 4 * size) < 0.2, NAN)
    moments = tuple(a + b for a, b in zip(moments_of(scores[:size]), moments_of(scores[size:]), strict=True))
    parts = [group_advantages(part, size, "batch", moments) for part in (scores[:size], scores[size:])]
    assert_close(torch.cat(parts), group_advantages(scores, size, "batch"))
    parts = [whiten_judged(part, moments) for part in (scores[:size], scores[size:])]
    assert_close(torch.cat(parts), whiten_judged(scores))


@grouped
def test_dtype_is_kept_and_bf16_is_close_to_fp32(name):
    scores = rand(3, 12).to(torch.bfloat16)
    got = GROUPED[name](scores, 4)
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), GROUPED[name](scores.float(), 4), rtol=0.05, atol=0.02)
    assert GROUPED[name](scores.float(), 4).dtype == torch.float32


@pytest.mark.parametrize("name", ["group", "batch", "none", "rloo"])
def test_large_scores_stay_finite(name):
    got = GROUPED[name](torch.tensor([1e15, -1e15, 0.0, 1.0]), 2)
    assert got.isfinite().all() and got[0] > 0


@pytest.mark.parametrize(
    "function", [group_advantages, rloo_advantages, bnpo_advantages, equal_groups], ids=lambda f: f.__name__
)
def test_scores_must_make_whole_groups_of_at_least_2(function):
    name = function.__name__
    for size in (1, 0, -2):
        with pytest.raises(ValueError, match=f"^{name}: group_size must be at least 2, got {size}: a single sample"):
            function(torch.zeros(4), size)
    for scores in (torch.zeros(4), torch.zeros(3, 1), torch.zeros(())):
        text = f"{name}: needed scores [N * 3], whole groups side by side, got {tuple(scores.shape)}"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            function(scores, 3)


@pytest.mark.parametrize("scale", ["Group", "std", "", None])
def test_other_scales_are_refused_by_name(scale):
    with pytest.raises(ValueError, match=f"^group_advantages: scale must be group, batch or none, got {scale!r}$"):
        group_advantages(torch.zeros(4), 2, scale)


def test_weights_must_fit_the_reward_functions():
    for scores, weights in ((torch.zeros(4), torch.zeros(4)), (torch.zeros(4, 2), torch.zeros(3))):
        with pytest.raises(ValueError, match=r"^weighted_scores: needed scores \[N, F\] and weights \[F\], got \("):
            weighted_scores(scores, weights)
    with pytest.raises(ValueError, match="^weighted_scores: needed scores"):
        gdpo_advantages(torch.zeros(4, 2), torch.zeros(1), 2)


def test_the_overlong_buffer_is_at_least_one_token():
    with pytest.raises(ValueError, match=r"^overlong_penalty: buffer must be in 1..max_tokens 8, got 0$"):
        overlong_penalty(torch.tensor([8]), max_tokens=8, buffer=0)
    assert overlong_penalty(torch.tensor([8]), max_tokens=8, buffer=1).tolist() == [-1.0]


def test_a_turn_has_the_return_from_itself_on():
    # Row 0: turns of 2, 1 and 1 tokens, rewards 1, 2, 4, and an outcome of 8 at the end: score 15.
    # Row 1: one turn, reward 3, a penalty of 1: score 2. Row 2 has no score.
    numbers = torch.tensor([[0, 1, 1, 0, 2, 3], [0, 1, 1, 1, 0, 0], [0, 1, 0, 2, 0, 0]])
    rewards = torch.tensor([[0.0, 0, 1, 0, 2, 4], [0, 0, 0, 3, 0, 0], [0, 5, 0, 0, 0, 0]])
    options = {"turn_rewards": rewards, "turn_numbers": numbers}
    found = turn_returns(torch.tensor([15.0, 2, NAN]), **options, turns=4)
    expected = torch.tensor([[15, 2, NAN], [14, NAN, NAN], [12, NAN, NAN], [NAN, NAN, NAN]])
    assert_close(found, expected, equal_nan=True)
    assert turn_returns(torch.zeros(0), turn_rewards=rewards[:0], turn_numbers=numbers[:0], turns=0).shape == (0, 0)
