"""From token log-probs to one number per response: sums, means, LD-DPO's sums and WPO's weights."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import desensitised_logps, mean_logps, sum_logps, wpo_weights

LN2, LN3 = math.log(2), math.log(3)

f64 = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40)


def bools(*rows):
    return torch.tensor(rows) == 1


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sums_and_means_by_hand_ignore_junk_outside_the_mask():
    nan = math.nan
    logps = torch.tensor([[nan, -1.0, -2.0, nan], [-5.0, nan, nan, -1.0], [nan] * 4], requires_grad=True)
    mask = bools([0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0])
    assert_close(sum_logps(logps, mask), torch.tensor([-3.0, -6.0, 0.0]))
    assert_close(mean_logps(logps, mask), torch.tensor([-1.5, -3.0, 0.0]))
    mean_logps(logps, mask).sum().backward()
    assert_close(logps.grad, mask.float() / 2)


def test_desensitised_logps_by_hand():
    # the other side has 2 tokens: -1 - 2 count in full, -4 and -8 a quarter: -3 - 3 = -6.
    # 1 token: -1 - 14 / 4 = -4.5.   9 tokens: all count in full.   The other mask has another start and width
    logps, mask = torch.tensor([[9.0, -1.0, -2.0, -4.0, -8.0]] * 3), bools([0, 1, 1, 1, 1]).expand(3, 5)
    other = bools([0] * 8 + [1, 1], [1] + [0] * 9, [0] + [1] * 9)
    assert_close(desensitised_logps(logps, mask, other_mask=other, alpha=0.25), torch.tensor([-6.0, -4.5, -15.0]))


@few
@given(st.integers(0, 2**31))
def test_desensitised_logps_between_the_common_part_and_the_whole(seed):
    logps, mask, other = randn(seed, 3, 6), randn(seed + 1, 3, 6) > 0, randn(seed + 2, 3, 4) > 0
    part = partial(desensitised_logps, logps, mask, other_mask=other)
    assert_close(part(alpha=1), sum_logps(logps, mask))
    common = [row[m][: o.sum()].sum() for row, m, o in zip(logps, mask, other, strict=True)]
    assert_close(part(alpha=0), torch.stack(common))
    assert_close(part(alpha=0.3), 0.7 * part(alpha=0) + 0.3 * part(alpha=1))


def test_desensitised_logps_gives_the_tail_a_gradient_of_alpha_and_junk_none():
    logps = torch.tensor([[math.nan, -1.0, -2.0, -4.0]], requires_grad=True)
    mask, other = bools([0, 1, 1, 1]), bools([1, 0])
    desensitised_logps(logps, mask, other_mask=other, alpha=0.25).sum().backward()
    assert_close(logps.grad, torch.tensor([[0.0, 1.0, 0.25, 0.25]]))


def wpo(gaps_chosen, gaps_rejected, expected=-2.0):
    """WPO weights of pairs: log-probs are `expected` plus a gap; a gap of nan means no token."""
    parts = {}
    for side, gaps in (("chosen", gaps_chosen), ("rejected", gaps_rejected)):
        gaps = f64(gaps)
        parts |= {f"{side}_logps": (gaps + expected).requires_grad_(), f"{side}_mask": ~gaps.isnan()}
        parts |= {f"{side}_expected": torch.full_like(gaps, expected)}
    return wpo_weights(**parts)


def test_wpo_weights_by_hand():
    # means over tokens: -ln 2 and -ln 3: 1/2 * 1/3.   0 and -ln 2.   1 and -2: exp(-1).   no token at all: exp(0 - 1)
    chosen = [[-2 * LN2, 0.0], [0.0, math.nan], [1.0, 1.0], [math.nan, math.nan]]
    rejected = [[-LN3, -LN3], [-2 * LN2, 0.0], [-2.0, math.nan], [-1.0, -1.0]]
    assert_close(wpo(chosen, rejected), f64([1 / 6, 1 / 2, math.exp(-1), math.exp(-1)]))


def test_wpo_weights_are_1_on_the_policys_own_text_capped_at_1_and_detached():
    weights = wpo([[0.0, 0.0], [3.0, 1.0], [1e4, 1e4]], [[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]])
    assert torch.equal(weights, torch.ones(3, dtype=torch.float64)) and not weights.requires_grad
    assert wpo([[-1e4]], [[-1e4]]).item() == 0


def test_gradcheck_of_sums():
    logps, mask = randn(1, 2, 4).requires_grad_(), bools([1, 1, 0, 1], [0, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda x: sum_logps(x, mask), logps)
    assert torch.autograd.gradcheck(lambda x: mean_logps(x, mask), logps)
    other = bools([1, 0], [1, 0])
    assert torch.autograd.gradcheck(lambda x: desensitised_logps(x, mask, other_mask=other, alpha=0.3), logps)


# ---- bad input


def test_masks_must_fit_and_be_bool():
    logps, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    pair = partial(desensitised_logps, other_mask=mask, alpha=0.5)
    for function, name in ((sum_logps, "sum_logps"), (mean_logps, "sum_logps"), (pair, "desensitised_logps")):
        with pytest.raises(ValueError, match=f"^{name}: mask must be bool .*float32"):
            function(logps, mask.float())
        with pytest.raises(ValueError, match=rf"^{name}: .*'mask': \(2, 2\), 'logps': \(2, 3\)"):
            function(logps, mask[:, :2])
    needed = r"^desensitised_logps: needed alpha in \[0, 1\] and masks of equal row counts, got"
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"{needed} {alpha}, 2 and 2"):
            desensitised_logps(logps, mask, other_mask=mask, alpha=alpha)
    with pytest.raises(ValueError, match=f"{needed} 0.5, 2 and 1"):
        desensitised_logps(logps, mask, other_mask=mask[:1], alpha=0.5)


@pytest.mark.parametrize("wrong", ["chosen_expected", "rejected_expected", "chosen_mask", "rejected_mask"])
def test_wpo_inputs_must_be_of_one_shape(wrong):
    parts = {f"{side}_{kind}": torch.zeros(2, 3) for side in ("chosen", "rejected") for kind in ("logps", "expected")}
    parts |= {f"{side}_mask": torch.ones(2, 3, dtype=torch.bool) for side in ("chosen", "rejected")}
    with pytest.raises(ValueError, match=r"needed tensors of one shape, .*\(2, 1\)"):
        wpo_weights(**parts | {wrong: parts[wrong][:, :1]})
    if "mask" in wrong:
        with pytest.raises(ValueError, match="mask must be bool"):
            wpo_weights(**parts | {wrong: parts[wrong].long()})
