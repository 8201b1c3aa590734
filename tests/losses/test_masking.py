"""B sequences, T tokens; every claim of losses/masking.py."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import (
    masked_mean,
    masked_moments,
    masked_sum,
    masked_var,
    masked_whiten,
    mean_and_var,
    sequence_mean,
    shift_right,
)
from minirlhf.losses.masking import check_mask, check_same_shape, predicted_tokens, wide_dtype

MASK = torch.tensor([[True, True, False], [True, False, False]])
X = torch.tensor([[1.0, 2.0, 7.0], [6.0, 8.0, 9.0]])  # 1, 2 and 6 are in the mask
SCALARS = {"sum": masked_sum, "mean": masked_mean, "sequence_mean": sequence_mean, "var": masked_var}
SCALARS |= {"moments": lambda x, mask: torch.stack(masked_moments(x, mask))}
FUNCTIONS = SCALARS | {
    "whiten": masked_whiten,
    "whiten_keep_mean": lambda x, mask: masked_whiten(x, mask, shift_mean=False),
    "whiten_given": lambda x, mask: masked_whiten(x, mask, moments=torch.tensor([4.0, 2.0, 9.0]).unbind()),
}
masks = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda flat: torch.tensor(flat).reshape(shape)
    )
)
seeds = st.integers(0, 2**31)
few = settings(max_examples=50)


def randn(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(b=4, t=7):
    """Random x in float64 and a mask with gaps, one row full and one row empty."""
    mask = torch.rand(b, t, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[0], mask[-1] = True, False
    return randn(0, (b, t)), mask


def test_shift_right_moves_columns_by_one_and_puts_0_first():
    assert_close(shift_right(torch.tensor([[1.0, 2, 3], [4, 5, 6]])), torch.tensor([[0.0, 1, 2], [0, 4, 5]]))
    x = torch.arange(1.0, 13).reshape(2, 3, 2)
    assert_close(shift_right(x), torch.tensor([[[0.0, 0], [1, 2], [3, 4]], [[0, 0], [7, 8], [9, 10]]]))
    assert_close(shift_right(torch.tensor([[5]])), torch.tensor([[0]]))


def test_predicted_tokens_by_hand():
    # nothing predicts token 0; position 1 predicts token 2
    mask = torch.tensor([[True, False, True], [False, True, True]])
    tokens, positions = predicted_tokens(mask)
    assert tokens.tolist() == [[False, False, True], [False, True, True]]
    assert positions.tolist() == [[False, True, False], [True, True, False]]
    assert mask[0, 0]  # the mask itself is not written to


@few
@given(masks, seeds)
def test_predicted_tokens_turn_shift_right_around(mask, seed):
    x = randn(seed, mask.shape)
    tokens, positions = predicted_tokens(mask)
    assert torch.equal(x[positions], shift_right(x)[tokens])


def test_sum_counts_true_only():
    assert_close(masked_sum(X, MASK), torch.tensor(9.0))  # 1 + 2 + 6


def test_mean_is_the_sum_over_the_count():
    assert_close(masked_mean(X, MASK), torch.tensor(3.0))  # 9 / 3
    for count in (6, 6.0, torch.tensor(6)):
        assert_close(masked_mean(X, MASK, count=count), torch.tensor(1.5))  # 9 / 6


def test_sequence_mean_gives_each_row_one_vote():
    assert_close(sequence_mean(X, MASK), torch.tensor(3.75))  # ((1 + 2) / 2 + 6 / 1) / 2
    for count in (5, 5.0, torch.tensor(5)):
        assert_close(sequence_mean(X, MASK, count=count), torch.tensor(1.5))  # (1.5 + 6) / 5


def test_sequence_mean_does_not_count_a_row_without_a_true_column():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert_close(sequence_mean(X, mask), torch.tensor(1.5))  # (1 + 2) / 2, over one row


def test_moments_are_n_sum_and_sum_of_squares():
    n, total, total_sq = masked_moments(X, MASK)
    # 3 numbers; 1 + 2 + 6 = 9; 1 + 4 + 36 = 41
    assert_close(torch.stack([n, total, total_sq]), torch.tensor([3.0, 9.0, 41.0], dtype=torch.float64))


def test_var_divides_by_n_minus_1():
    assert_close(masked_var(X, MASK), torch.tensor(7.0))  # mean 3: (4 + 1 + 9) / (3 - 1)
    mean, var = mean_and_var(masked_moments(X, MASK))
    assert (mean.item(), var.item()) == (3.0, 7.0)


def test_whiten_divides_by_the_unbiased_deviation():
    x = torch.tensor([[2.0, 4.0, 6.0, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    # mean 4, variance (4 + 0 + 4) / 2 = 4, deviation 2; with the mean added back 4 more, but 0 in padding
    assert_close(masked_whiten(x, mask), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))
    assert_close(masked_whiten(x, mask, shift_mean=False), torch.tensor([[3.0, 4.0, 5.0, 0.0]]))


def test_whiten_adds_1e_minus_8_to_the_variance():
    # two numbers 2a apart: variance 2 a^2 = 1e-8, so a / sqrt(2e-8) = sqrt(0.5e-8 / 2e-8) = 0.5
    a = 0.5e-8**0.5
    x = torch.tensor([[-a, a]], dtype=torch.float64)
    assert_close(masked_whiten(x, torch.tensor([[True, True]])), torch.tensor([[-0.5, 0.5]], dtype=torch.float64))


def test_whiten_takes_the_moments_it_is_given():
    # n = 5, sum = 10, squares = 36: mean 2, variance (36 - 5 * 4) / 4 = 4
    moments = torch.tensor([5.0, 10.0, 36.0], dtype=torch.float64).unbind()
    assert_close(masked_whiten(X, MASK, moments=moments), torch.tensor([[-0.5, 0.0, 0.0], [2.0, 0.0, 0.0]]))


def test_golden_core(golden):
    # v0.11.4 leaves whitened junk outside the mask; we put 0 there, so only the inside is compared
    values, mask, core = golden["inputs"]["values"], golden["inputs"]["mask"], golden["core"]
    assert masked_mean(values, mask).item() == pytest.approx(core["masked_mean"])
    assert masked_var(values, mask).item() == pytest.approx(core["masked_var"])
    assert sequence_mean(values, mask).item() == pytest.approx(core["masked_mean_axis1"].mean().item())
    assert_close(masked_whiten(values, mask)[mask], core["masked_whiten"][mask])
    assert_close(masked_whiten(values, mask, shift_mean=False)[mask], core["masked_whiten_noshift"][mask])


def test_golden_returns_and_values_statistics(golden):
    stats, mask = golden["ppo_v0_11_4"]["stats"], golden["inputs"]["mask"]
    for name, x in (("returns", golden["ppo_v0_11_4"]["returns_whiten0"]), ("val", golden["inputs"]["values"])):
        assert masked_mean(x, mask).item() == pytest.approx(stats[f"{name}/mean"])
        assert masked_var(x, mask).item() == pytest.approx(stats[f"{name}/var"])


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_junk_in_padding_reaches_neither_value_nor_gradient(name, junk):
    x, mask = ragged()
    clean = x.where(mask, torch.zeros(())).requires_grad_()
    dirty = x.masked_fill(~mask, junk).requires_grad_()
    want, got = FUNCTIONS[name](clean, mask), FUNCTIONS[name](dirty, mask)
    weights = randn(2, want.shape)
    (want_grad,) = torch.autograd.grad((want * weights).sum(), clean)
    (got_grad,) = torch.autograd.grad((got * weights).sum(), dirty)
    assert torch.equal(got, want) and torch.equal(got_grad, want_grad)
    assert torch.equal(got_grad[~mask], torch.zeros_like(got_grad[~mask])) and want_grad[mask].any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient(name):
    x, mask = ragged()
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, mask), x.requires_grad_())


@pytest.mark.parametrize("name", SCALARS)
def test_empty_mask_gives_0_with_zero_gradient(name):
    x = X.clone().requires_grad_()
    result = SCALARS[name](x, torch.zeros_like(MASK))
    assert torch.equal(result, torch.zeros_like(result))
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], torch.zeros_like(X))


def test_whiten_of_nothing_of_one_number_or_of_a_constant_is_0():
    # the gradient at a constant is not 0: the slope is 1 / sqrt(var + 1e-8) = 1e4
    for mask in (torch.zeros_like(MASK), torch.tensor([[True, False, False], [False] * 3])):
        x = X.clone().requires_grad_()
        whitened = masked_whiten(x, mask)
        assert torch.equal(whitened, torch.zeros_like(X))
        assert torch.equal(torch.autograd.grad(whitened.sum(), x)[0], torch.zeros_like(X))
    assert torch.equal(masked_whiten(torch.full((2, 3), 3.3), MASK), torch.zeros(2, 3))
    assert masked_var(X, torch.tensor([[True, False, False], [False] * 3])).item() == 0


@pytest.mark.parametrize("value", [3.3, 1e8 + 0.1])
def test_variance_is_never_negative(value):
    x = torch.full((1, 7), value, dtype=torch.float64)
    assert masked_var(x, torch.ones(1, 7, dtype=torch.bool)).item() >= 0


def test_rounding_that_leaves_a_negative_variance_is_held_at_0():
    moments = torch.tensor([3.0, 3.0, 3.0 - 1e-12], dtype=torch.float64).unbind()
    assert mean_and_var(moments)[1].item() == 0


def test_variance_keeps_its_digits_far_from_0():
    # the squares are 1e8, where float32 steps by 8: the variance, 100 / 99, would be noise
    x = torch.tensor([[9999.0, 10001.0] * 50])
    assert_close(masked_var(x, torch.ones(1, 100, dtype=torch.bool)), torch.tensor(100 / 99))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_keep_the_dtype_and_moments_are_float64(dtype):
    x = X.to(dtype)
    for function in (masked_sum, masked_mean, sequence_mean, masked_var, masked_whiten):
        assert function(x, MASK).dtype == dtype
    assert {moment.dtype for moment in masked_moments(x, MASK)} == {torch.float64}


def test_moments_are_float32_where_the_device_has_no_float64():
    assert wide_dtype(SimpleNamespace(device=torch.device("mps"))) == torch.float32
    assert wide_dtype(torch.empty(0)) == torch.float64


@pytest.mark.parametrize("mean, count", [(masked_mean, lambda m: m.sum()), (sequence_mean, lambda m: m.any(-1).sum())])
@pytest.mark.parametrize("parts", [2, 4])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(mean, count, parts):
    x, mask = ragged()
    whole, split = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = mean(whole.square(), mask)
    n = count(mask)
    losses = [mean(a.square(), m, count=n) for a, m in zip(split.chunk(parts), mask.chunk(parts), strict=True)]
    want.backward()
    for loss in losses:
        loss.backward()
    assert_close(sum(losses), want, rtol=1e-12, atol=1e-12)
    assert_close(split.grad, whole.grad, rtol=1e-12, atol=1e-12)


def test_moments_of_the_parts_add_up_so_a_split_batch_is_whitened_alike():
    x, mask = ragged()
    parts = list(zip(x.chunk(4), mask.chunk(4), strict=True))
    moments = tuple(sum(column) for column in zip(*(masked_moments(a, m) for a, m in parts), strict=True))
    got = torch.cat([masked_whiten(a, m, moments=moments) for a, m in parts])
    assert_close(got, masked_whiten(x, mask), rtol=1e-12, atol=1e-12)


@few
@given(masks, seeds)
def test_whitened_numbers_have_mean_0_and_variance_1(mask, seed):
    assume(mask.sum() >= 2)
    x = 3 + 2 * randn(seed, mask.shape)
    assume(masked_var(x, mask) > 1e-2)
    whitened = masked_whiten(x, mask)
    assert masked_mean(whitened, mask).abs() < 1e-9 and (masked_var(whitened, mask) - 1).abs() < 2e-6
    assert not whitened[~mask].any()


@few
@given(masks, seeds)
def test_the_order_of_rows_and_columns_does_not_matter(mask, seed):
    x = randn(seed, mask.shape)
    rows, columns = randn(seed, mask.shape[0]).argsort(), randn(seed, mask.shape[1]).argsort()
    moved, moved_mask = x[rows][:, columns], mask[rows][:, columns]
    for function in SCALARS.values():
        assert_close(function(moved, moved_mask), function(x, mask), rtol=1e-9, atol=1e-9)
    assert_close(masked_whiten(moved, moved_mask), masked_whiten(x, mask)[rows][:, columns], rtol=1e-6, atol=1e-6)


@few
@given(st.integers(1, 4), st.integers(1, 6), seeds)
def test_both_means_agree_when_all_rows_are_full(b, t, seed):
    x, mask = randn(seed, (b, t)), torch.ones(b, t, dtype=torch.bool)
    assert_close(masked_mean(x, mask), x.mean())
    assert_close(sequence_mean(x, mask), x.mean())


def test_inputs_are_not_written_to():
    x, mask = X.clone(), MASK.clone()
    for function in FUNCTIONS.values():
        function(x, mask)
    assert torch.equal(x, X) and torch.equal(mask, MASK)


@pytest.mark.parametrize("name", ["sum", "mean", "sequence_mean", "moments", "whiten"])
def test_errors_name_the_function_the_need_and_the_input(name):
    who = name if name == "sequence_mean" else f"masked_{name}"
    shapes = r"needed tensors of one shape, got \{'mask': \(2, 2\), 'x': \(2, 3\)\}; check which tensor was transposed"
    with pytest.raises(ValueError, match=f"^{who}: {shapes}"):
        FUNCTIONS[name](X, MASK[:, :2])
    dtype = r"mask must be bool with True = counts, got torch.float32; use mask.bool\(\)"
    with pytest.raises(ValueError, match=f"^{who}: {dtype}"):
        FUNCTIONS[name](X, MASK.float())


def test_var_refuses_the_same_as_the_moments():
    with pytest.raises(ValueError, match="needed tensors of one shape"):
        masked_var(X, MASK[:1])
    with pytest.raises(ValueError, match="mask must be bool"):
        masked_var(X, MASK.int())


def test_nothing_may_broadcast():
    check_same_shape("f", a=torch.zeros(2, 3), b=torch.ones(2, 3))
    check_mask("f", torch.ones(2, 3, dtype=torch.bool), a=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^f: needed tensors of one shape, got \{'a': \(2, 1\), 'b': \(2, 3\)\}"):
        check_same_shape("f", a=torch.zeros(2, 1), b=torch.zeros(2, 3))


def test_a_count_of_0_divides_by_1():
    x, nothing = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    assert masked_mean(x, nothing, count=0) == 0 == sequence_mean(x, nothing, count=0)
