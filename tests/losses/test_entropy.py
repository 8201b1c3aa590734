"""The tokens with the highest entropy, and a bonus that adapts. B sequences, T tokens."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minirlhf.losses import AdaptiveEntropyController, entropy_threshold, high_entropy_mask

few = settings(max_examples=50)


def test_threshold_by_hand():
    # 1..5: the two fifths are 4 and 5. k = 1 + floor(0.4 * 4) = 2, and the second highest is 4
    entropies = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    assert entropy_threshold(entropies, 0.4).item() == 4
    assert entropy_threshold(entropies, 1).item() == 1
    assert entropy_threshold(entropies[:0], 0.4).item() == 0


def test_mask_by_hand_looks_at_the_mask_only():
    # of 1..5 in the mask two fifths are 4 and 5; the 9 and the NaN beside it do not count
    entropy = torch.tensor([[9.0, 1.0, 4.0, math.nan], [2.0, 5.0, 3.0, 9.0]])
    mask = torch.tensor([[False, True, True, False], [True, True, True, False]])
    kept = high_entropy_mask(entropy, mask, 0.4)
    assert kept.tolist() == [[False, False, True, False], [False, True, False, False]]
    assert torch.equal(high_entropy_mask(entropy, mask, 1.0), mask)
    kept = high_entropy_mask(entropy, mask, 0.4, threshold=torch.tensor(3.0))  # the threshold of all ranks
    assert kept.tolist() == [[False, False, True, False], [False, True, True, False]]


def test_equal_entropies_are_all_kept_and_an_empty_mask_stays_empty():
    entropy, mask = torch.full((2, 3), 0.7), torch.tensor([[True, True, False], [True, False, False]])
    assert torch.equal(high_entropy_mask(entropy, mask, 0.2), mask)
    assert not high_entropy_mask(entropy, torch.zeros_like(mask), 0.2).any()


@few
@example(0, 0.0625, torch.bfloat16)  # a rounded threshold adds a third token to two
@given(st.integers(0, 2**31), st.floats(0.01, 1), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_tokens_kept_are_about_the_fraction_and_above_all_others(seed, fraction, dtype):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(5, 8, generator=generator).to(dtype)
    mask = torch.rand(5, 8, generator=generator) < 0.7
    kept = high_entropy_mask(entropy, mask, fraction)
    assert kept.any() and not (kept & ~mask).any()
    ties = (entropy[mask] == entropy[kept].min()).sum() - 1
    assert fraction * mask.sum() - 1 <= kept.sum() <= fraction * mask.sum() + 1 + ties
    assert not (mask & ~kept).any() or entropy[kept].min() > entropy[mask & ~kept].max()
    order = torch.randperm(5, generator=generator)
    assert torch.equal(high_entropy_mask(entropy[order], mask[order], fraction), kept[order])


def test_float64_entropies_reach_their_own_threshold():
    # 0.1 in float32 is 1.5e-9 more than in float64
    entropy, mask = torch.tensor([[0.1, 0.1]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(high_entropy_mask(entropy, mask, 1.0), mask)


def test_the_tokens_kept_are_those_at_or_above_the_quantile():
    entropy, mask = torch.rand(1, 101, generator=torch.Generator().manual_seed(0)), torch.ones(1, 101, dtype=torch.bool)
    for percent in range(1, 101):  # 0.29 * 100 is 28.999999999999996
        kept = high_entropy_mask(entropy, mask, percent / 100)
        assert int(kept.sum()) == percent + 1
        assert torch.equal(kept, entropy >= torch.quantile(entropy.double(), 1 - percent / 100) - 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_a_threshold_in_half_precision_keeps_the_share(dtype, fraction):
    # Neighbours in half precision: a threshold between two of them would be rounded to one or the other.
    entropy = (1 + torch.arange(10) * torch.finfo(dtype).eps).to(dtype)[None]
    assert int(high_entropy_mask(entropy, torch.ones(1, 10, dtype=torch.bool), fraction).sum()) == 10 * fraction


def test_more_numbers_than_a_quantile_of_torch_accepts():
    n = 2**24 + 8
    entropy = torch.arange(n, dtype=torch.int32).float()  # beyond 2^24 fp32 knows even numbers alone
    assert entropy_threshold(entropy, 0.25).item() == n - 1 - n // 4 + 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, math.nan])
def test_fraction_lies_above_0_and_at_most_1(fraction):
    entropy, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"^entropy_threshold: fraction must be in \(0, 1\], got {fraction}$"):
        high_entropy_mask(entropy, mask, fraction)
    with pytest.raises(ValueError, match="^entropy_threshold: fraction must be in"):
        entropy_threshold(entropy[0], fraction)


def test_mask_and_shapes_are_checked():
    entropy = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="^high_entropy_mask: mask must be bool with True = counts, got torch.int64"):
        high_entropy_mask(entropy, torch.ones(2, 3).long(), 0.2)
    with pytest.raises(ValueError, match="^high_entropy_mask: needed tensors of one shape"):
        high_entropy_mask(entropy, torch.ones(2, 2, dtype=torch.bool), 0.2)


def test_controller_by_hand():
    # target 1, delta 0.05: below and at the target 0.1 -> 0.15 -> 0.2; above it 0.15, unpaid; below again 0.2, paid
    controller = AdaptiveEntropyController(0.1, target=1.0, delta=0.05)
    assert controller.coef == 0.1
    for entropy, coef, level in [(0.5, 0.15, 0.15), (1.0, 0.2, 0.2), (1.1, 0.0, 0.15), (0.9, 0.2, 0.2)]:
        controller.update(entropy)
        assert controller.coef == pytest.approx(coef) and controller.level == pytest.approx(level)


def test_controller_never_punishes_entropy():
    controller = AdaptiveEntropyController(0.1, target=1.0, delta=0.08)
    for _ in range(3):
        controller.update(2.0)
        assert controller.coef == 0 and controller.level >= 0
    controller.update(0.5)
    assert controller.coef == pytest.approx(0.08)  # it rises from 0: the level never goes below 0


@pytest.mark.parametrize("entropies", [[], [0.5], [0.5, 2.0], [2.0, 2.0, 0.5]])
def test_controller_resumes_where_it_stopped(entropies):
    controller, resumed = (AdaptiveEntropyController(init, target=1.0, delta=0.05) for init in (0.3, 0.0))
    for entropy in entropies:
        controller.update(entropy)
    resumed.load_state_dict(controller.state_dict())
    for entropy in (None, 0.5, 3.0):
        if entropy is not None:
            controller.update(entropy)
            resumed.update(entropy)
        assert resumed.coef == controller.coef and resumed.state_dict() == controller.state_dict()
    assert all(type(value) is float for value in controller.state_dict().values())


@pytest.mark.parametrize("init, delta", [(-0.1, 0.05), (0.1, 0.0), (0.1, -1.0), (0.1, math.nan)])
def test_controller_refuses_a_negative_start_or_step(init, delta):
    text = f"^AdaptiveEntropyController: needed init >= 0 and delta > 0, got {init} and {delta}$"
    with pytest.raises(ValueError, match=text):
        AdaptiveEntropyController(init, target=1.0, delta=delta)
