"""B sequences, T tokens, V vocabulary, D width. Plain against hand-worked, chunked against plain."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.losses import linear_logps_and_entropy, linear_token_logps, token_entropy, token_logps

B, T, V, D = 2, 5, 7, 3
CHUNKS = [1, V, 2 * V, 3 * V + 1, 4 * V, 2**22]  # numbers per chunk: 1, 1, 2, 3, 4 and all 10 tokens
TOLERANCE = {torch.float64: {"rtol": 1e-11, "atol": 1e-11}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}
seeds = st.integers(0, 2**31)
few = settings(max_examples=25)


@pytest.fixture
def chunk_numbers(monkeypatch):
    return lambda numbers: monkeypatch.setattr("minirlhf.losses.tiles.CHUNK_NUMBERS", numbers)


def head(dtype=torch.float64, seed=0):
    """hidden [B, T, D], weight [V, D], bias [V], all with gradient, and input_ids [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, D), (V, D), (V,)
    parts = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return *parts, torch.randint(V, (B, T), generator=generator)


def plain(hidden, weight, input_ids, temperature=1.0, bias=None):
    logits = F.linear(hidden, weight, bias)
    return token_logps(logits, input_ids, temperature), token_entropy(logits, temperature)


def both_ways(weights_of_outputs=(1.0, 1.0), dtype=torch.float64, use_bias=True, temperature=1.0, seed=0):
    """(outputs, gradients) of the chunked and of the plain version on one random weighting of their outputs."""
    results = []
    for function in (linear_logps_and_entropy, plain):
        hidden, weight, bias, input_ids = head(dtype, seed)
        leaves = [hidden, weight, bias] if use_bias else [hidden, weight]
        outputs = function(hidden, weight, input_ids, temperature, bias if use_bias else None)
        noise = torch.randn(2, B, T, generator=torch.Generator().manual_seed(9)).to(outputs[0].dtype)
        used = [(w * n * x).sum() for w, n, x in zip(weights_of_outputs, noise, outputs, strict=True) if w]
        results.append((outputs, torch.autograd.grad(sum(used), leaves)))
    return results


def test_by_hand():
    # logits (ln 3, 0) mean p = (3/4, 1/4); (0, 0) mean 1/2 each. Position 0 predicts token 1
    # ln 1/4 = -1.386294, ln 1/2 = -0.693147; H(3/4, 1/4) = 0.75 * 0.287682 + 0.25 * 1.386294 = 0.562335; H(1/2) = ln 2
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [9.0, -9.0]]])
    input_ids = torch.tensor([[0, 1, 0]])
    assert_close(token_logps(logits, input_ids), torch.tensor([[0.0, -1.386294, -0.693147]]))
    assert_close(token_entropy(logits), torch.tensor([[0.0, 0.562335, 0.693147]]))


def test_temperature_by_hand():
    # (2 ln 3, 0) / 2 = (ln 3, 0): the same 3/4 and 1/4
    logits = torch.tensor([[[2 * math.log(3), 0.0], [0.0, 0.0]]])
    assert_close(token_logps(logits, torch.tensor([[0, 0]]), temperature=2.0), torch.tensor([[0.0, -0.287682]]))
    assert_close(token_entropy(logits, temperature=2.0), torch.tensor([[0.0, 0.562335]]))


def test_linear_by_hand():
    # hidden (1, 0) x weight rows (ln 3 - 1, 5), (0, 7) + bias (1, 0) = (ln 3, 0): 3/4 and 1/4; token 1 is 0
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 3.0]]])
    weight, bias = torch.tensor([[math.log(3) - 1, 5.0], [0.0, 7.0]]), torch.tensor([1.0, 0.0])
    logps, entropy = linear_logps_and_entropy(hidden, weight, torch.tensor([[1, 0]]), bias=bias)
    assert_close(logps, torch.tensor([[0.0, -0.287682]]))
    assert_close(entropy, torch.tensor([[0.0, 0.562335]]))
    assert_close(linear_token_logps(hidden, weight, torch.tensor([[1, 0]]), bias=bias), logps)


@pytest.mark.parametrize("function", [plain, linear_logps_and_entropy])
def test_index_rule(function):
    # column 0 is 0; column t depends on position t - 1 and on no other, token t and no other
    hidden, weight, bias, input_ids = head()
    for output in function(hidden, weight, input_ids, bias=bias):
        assert not output[:, 0].any()
        for t in range(T):
            (grad,) = torch.autograd.grad(output[:, t].sum(), hidden, retain_graph=True)
            assert [bool(grad[:, s].any()) for s in range(T)] == [s == t - 1 for s in range(T)]
    for t in range(T):
        other_ids = input_ids.clone()
        other_ids[:, t] = (input_ids[:, t] + 1) % V
        changed = function(hidden, weight, other_ids, bias=bias)[0] != function(hidden, weight, input_ids, bias=bias)[0]
        assert [bool(changed[:, s].all()) for s in range(T)] == [s == t and t > 0 for s in range(T)]
        assert changed.sum() == (B if t else 0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_gradient_of_the_plain_versions(temperature):
    logits = torch.randn(B, T, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    input_ids = head()[-1]
    assert torch.autograd.gradcheck(lambda x: token_logps(x, input_ids, temperature), logits)
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, temperature), logits)


@pytest.mark.parametrize("numbers", [V, 3 * V, 2**22])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gradient_of_the_chunked_version(chunk_numbers, numbers, use_bias):
    chunk_numbers(numbers)
    *leaves, input_ids = head()

    def outputs(hidden, weight, bias=None):
        return linear_logps_and_entropy(hidden, weight, input_ids, temperature=0.7, bias=bias)

    assert torch.autograd.gradcheck(outputs, tuple(leaves if use_bias else leaves[:2]))


def test_capped_logits(chunk_numbers):
    # c tanh(z / c), as in Gemma 2; at c = 0.8 half of these logits lie in the bend
    chunk_numbers(3 * V)
    hidden, weight, bias, input_ids = head()
    logits = 0.8 * torch.tanh((hidden @ weight.T + bias) / 0.8)
    assert_close(
        linear_logps_and_entropy(hidden, weight, input_ids, 0.7, bias, softcap=0.8),
        (token_logps(logits, input_ids, 0.7), token_entropy(logits, 0.7)),
    )
    assert torch.equal(
        linear_token_logps(hidden, weight, input_ids, 0.7, bias, 0.8),
        linear_logps_and_entropy(hidden, weight, input_ids, 0.7, bias, 0.8)[0],
    )
    capped = lambda *leaves: linear_logps_and_entropy(*leaves[:2], input_ids, 0.7, leaves[2], softcap=0.8)  # noqa: E731
    assert torch.autograd.gradcheck(capped, (hidden, weight, bias))


@pytest.mark.parametrize("numbers", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_bias", [True, False])
def test_chunked_equals_plain(chunk_numbers, numbers, dtype, use_bias):
    chunk_numbers(numbers)
    (got, got_grads), (want, want_grads) = both_ways(dtype=dtype, use_bias=use_bias, temperature=0.7)
    assert_close(got, want, **TOLERANCE[dtype])
    assert_close(got_grads, want_grads, **TOLERANCE[dtype])


@pytest.mark.parametrize("used", [(1.0, 0.0), (0.0, 1.0)])
def test_either_output_may_go_unused(chunk_numbers, used):
    chunk_numbers(3 * V)
    (_, got), (_, want) = both_ways(used)
    assert_close(got, want, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("numbers", [2 * V, 2**22])
def test_chunked_equals_plain_in_bf16(chunk_numbers, numbers):
    # the logits are the same bf16 numbers, everything after them is fp32; weight and bias sum over chunks in fp32
    chunk_numbers(numbers)
    (got, got_grads), (want, want_grads) = both_ways(dtype=torch.bfloat16)
    assert {x.dtype for x in got + want} == {torch.float32} and {g.dtype for g in got_grads} == {torch.bfloat16}
    assert_close(got, want)
    assert_close(got_grads, want_grads, rtol=0.02, atol=0.02)


def test_bf16_gradients_are_summed_over_chunks_in_fp32(chunk_numbers):
    # 512 equal tokens, one per chunk: a bf16 sum would stop growing once a term is below 1/256 of the sum
    chunk_numbers(1)
    hidden, input_ids = torch.ones(1, 513, 1).bfloat16(), torch.zeros(1, 513, dtype=torch.long)
    weight, bias = (torch.zeros(shape).bfloat16().requires_grad_() for shape in ((2, 1), (2,)))
    linear_token_logps(hidden, weight, input_ids, bias=bias).sum().backward()
    # d log p / dz = onehot - 1/2 = (1/2, -1/2) for each of 512 tokens
    for grad in (weight.grad.flatten(), bias.grad):
        assert_close(grad, torch.tensor([256.0, -256.0], dtype=torch.bfloat16))


def test_tied_weight_gets_both_gradients(chunk_numbers):
    chunk_numbers(2 * V)
    _, weight, _, input_ids = head()
    grads = []
    for function in (linear_logps_and_entropy, plain):
        logps, entropy = function(F.embedding(input_ids, weight).tanh(), weight, input_ids)
        grads.append(torch.autograd.grad((logps * 2 + entropy).sum(), weight)[0])
    assert_close(*grads, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {0, 1}, {1, 2}])
def test_frozen_parts_get_no_gradient_and_change_no_other(chunk_numbers, trained):
    chunk_numbers(2 * V)
    want = dict(enumerate(both_ways()[1][1]))
    *parts, input_ids = head()
    for i, part in enumerate(parts):
        part.requires_grad_(i in trained)
    hidden, weight, bias = parts
    noise = torch.randn(2, B, T, generator=torch.Generator().manual_seed(9)).double()
    outputs = linear_logps_and_entropy(hidden, weight, input_ids, bias=bias)
    sum((n * x).sum() for n, x in zip(noise, outputs, strict=True)).backward()
    for i, part in enumerate(parts):
        assert (part.grad is not None) == (i in trained)
        if i in trained:
            assert_close(part.grad, want[i], **TOLERANCE[torch.float64])


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("numbers", [V, 2**22])
def test_masked_tokens_alone_are_computed(chunk_numbers, numbers, entropy):
    """The same numbers and gradients as without a mask, 0 elsewhere, and NaN at other tokens reaches nothing."""
    chunk_numbers(numbers)
    hidden, weight, bias, ids = head()
    mask = torch.tensor([[True, True, False, True, False], [False, False, False, False, True]])
    wanted = mask.clone()
    wanted[:, 0] = False  # nothing stands before it
    expected = [torch.where(wanted, x, 0) for x in linear_logps_and_entropy(hidden, weight, ids, bias=bias)]
    expected = expected[: 1 + entropy]
    slopes = torch.randn(2, B, T, dtype=torch.float64)
    slopes_of = [(x * slope).sum() for x, slope in zip(expected, slopes, strict=False)]
    expected_grads = torch.autograd.grad(sum(slopes_of), (hidden, weight, bias))
    poisoned = torch.where(wanted.roll(-1, 1)[..., None], hidden, torch.nan)
    results = linear_logps_and_entropy(poisoned, weight, ids, bias=bias, mask=mask, entropy=entropy)
    assert (results[1] is None) == (not entropy)
    results = [x for x in results if x is not None]
    assert_close(results, expected, rtol=1e-11, atol=1e-11)
    grads = torch.autograd.grad(
        sum((x * s).sum() for x, s in zip(results, slopes, strict=False)), (hidden, weight, bias)
    )
    assert_close(grads, expected_grads, rtol=1e-11, atol=1e-11)
    assert linear_token_logps(poisoned, weight, ids, bias=bias, mask=mask).equal(results[0])


def test_a_mask_without_tokens_gives_zeros_and_zero_gradients():
    hidden, weight, _, ids = head()
    logps, entropy = linear_logps_and_entropy(hidden, weight, ids, mask=torch.zeros(B, T, dtype=torch.bool))
    assert not logps.any() and not entropy.any()
    assert not any(g.any() for g in torch.autograd.grad(logps.sum() + entropy.sum(), (hidden, weight)))
    with pytest.raises(ValueError, match="^linear_token_logps: mask must be bool"):
        linear_logps_and_entropy(hidden, weight, ids, mask=torch.ones(B, T))


def test_no_gradient_no_graph():
    hidden, weight, bias, input_ids = (x.detach() for x in head())
    assert not any(x.requires_grad for x in linear_logps_and_entropy(hidden, weight, input_ids, bias=bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_equals_plain_under_autocast(chunk_numbers, dtype):
    # a Linear makes hidden in bf16, a norm in fp32; the head's weight is fp32 in both cases
    chunk_numbers(3 * V)
    hidden, weight, bias, input_ids = head(torch.float32)
    leaves = hidden.detach().to(dtype).requires_grad_(), weight, bias
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (f(leaves[0], weight, input_ids, bias=bias) for f in (linear_logps_and_entropy, plain))
    assert_close(got, want)
    assert {x.dtype for x in got} == {torch.float32}
    got_grads, want_grads = (torch.autograd.grad(sum(x.sum() for x in outputs), leaves) for outputs in (got, want))
    assert [x.dtype for x in got_grads] == [dtype, torch.float32, torch.float32]
    assert_close(got_grads, want_grads, rtol=0.02, atol=0.02)


def test_backward_inside_autocast_equals_backward_outside(chunk_numbers):
    chunk_numbers(3 * V)
    hidden, weight, bias, input_ids = head(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(x.sum() for x in linear_logps_and_entropy(hidden, weight, input_ids, bias=bias))
        inside = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    assert_close(torch.autograd.grad(loss, (hidden, weight, bias)), inside, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_chunked_version_never_holds_all_logits(chunk_numbers):
    chunk_numbers(500)
    hidden, weight = torch.ones(2, 60, 4, requires_grad=True), torch.ones(100, 4, requires_grad=True)  # 12,000 logits
    with Largest() as largest:
        logps, entropy = linear_logps_and_entropy(hidden, weight, torch.zeros(2, 60, dtype=torch.long))
        (logps + entropy).sum().backward()
    assert largest.numbers == 500


@pytest.mark.parametrize("function", [token_logps, lambda logits, ids: token_entropy(logits)])
def test_bf16_logits_are_widened_before_the_softmax(function):
    logits = torch.randn(1, 4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    input_ids = torch.tensor([[1, 2, 3, 4]])
    assert function(logits, input_ids).dtype == torch.float32
    assert_close(function(logits, input_ids), function(logits.float(), input_ids))
    assert function(logits.half(), input_ids).dtype == torch.float32
    assert function(logits.double(), input_ids).dtype == torch.float64


@few
@given(seeds, st.floats(0.1, 10))
def test_probabilities_of_all_tokens_sum_to_1_and_entropy_is_their_mean_surprise(seed, temperature):
    logits = 3 * torch.randn(1, 2, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logps = torch.stack([token_logps(logits, torch.tensor([[0, v]]), temperature)[0, 1] for v in range(V)])
    assert_close(logps.exp().sum(), torch.ones((), dtype=torch.float64))
    entropy = token_entropy(logits, temperature)[0, 1]
    assert_close(entropy, -(logps.exp() * logps).sum())
    assert -1e-12 <= entropy <= math.log(V) + 1e-12


@few
@given(seeds, st.floats(0.1, 10))
def test_temperature_divides_the_logits(seed, temperature):
    hidden, weight, bias, input_ids = (x.detach() for x in head(seed=seed))
    logits = F.linear(hidden, weight, bias)
    assert_close(token_logps(logits, input_ids, temperature), token_logps(logits / temperature, input_ids))
    assert_close(token_entropy(logits, temperature), token_entropy(logits / temperature))
    got = linear_logps_and_entropy(hidden, weight, input_ids, temperature, bias)
    assert_close(got, plain(hidden, weight, input_ids, temperature, bias))


@few
@given(seeds, st.permutations(range(B)))
def test_rows_do_not_see_each_other(seed, order):
    hidden, weight, bias, input_ids = (x.detach() for x in head(seed=seed))
    order = list(order)
    for function in (plain, linear_logps_and_entropy):
        whole = function(hidden, weight, input_ids, bias=bias)
        moved = function(hidden[order], weight, input_ids[order], bias=bias)
        assert_close(moved, tuple(x[order] for x in whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [plain, linear_logps_and_entropy])
def test_extreme_logits_stay_finite_in_value_and_gradient(function):
    # logits (1e4, -1e4): log-probs 0 and -2e4, entropy 0
    hidden = torch.tensor([[[1.0], [1.0], [1.0]]], requires_grad=True)
    weight = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logps, entropy = function(hidden, weight, torch.tensor([[0, 0, 1]]))
    assert_close(logps, torch.tensor([[0.0, 0.0, -2e4]]))
    assert_close(entropy, torch.zeros(1, 3))
    grads = torch.autograd.grad((logps + entropy).sum(), (hidden, weight))
    assert all(grad.isfinite().all() for grad in grads)


def test_a_single_token_has_column_0_only():
    hidden, weight, _, input_ids = (x.detach() for x in head())
    for function in (plain, linear_logps_and_entropy):
        for output in function(hidden[:, :1], weight, input_ids[:, :1]):
            assert torch.equal(output, torch.zeros(B, 1, dtype=torch.float64))


def test_uniform_logits_have_the_largest_entropy():
    assert_close(token_entropy(torch.zeros(1, 2, V)), torch.tensor([[0.0, math.log(V)]]))


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    hidden, weight, _, input_ids = head()
    text = f"temperature must be > 0, got {temperature}; greedy decoding has no log-prob"
    with pytest.raises(ValueError, match=f"^token_logps: {text}"):
        token_logps(hidden, input_ids, temperature)
    with pytest.raises(ValueError, match=f"^token_entropy: {text}"):
        token_entropy(hidden, temperature)
    for function in (linear_token_logps, linear_logps_and_entropy):
        with pytest.raises(ValueError, match=f"^linear_token_logps: {text}"):
            function(hidden, weight, input_ids, temperature)


def test_shapes_must_fit():
    hidden, weight, _, input_ids = head()
    text = r"^token_logps: needed logits \[B, T, V\] for input_ids \[B, T\], got "
    with pytest.raises(ValueError, match=text + r"\(2, 4, 3\) and \(2, 5\); pass the logits of all T positions$"):
        token_logps(hidden[:, :-1], input_ids)
    text = r"^linear_token_logps: needed hidden \[B, T, D\], weight \[V, D\], input_ids \[B, T\], got "
    with pytest.raises(ValueError, match=text + r"\(2, 4, 3\), \(7, 3\), \(2, 5\)"):
        linear_token_logps(hidden[:, 1:], weight, input_ids)
    with pytest.raises(ValueError, match=text + r"\(2, 5, 3\), \(3, 7\), \(2, 5\)"):
        linear_token_logps(hidden, weight.T, input_ids)


def test_a_bias_of_another_length_is_refused():
    hidden, weight, ids = torch.randn(1, 2, 3), torch.randn(5, 3), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"needed bias \[5\], got \(1,\)"):
        linear_logps_and_entropy(hidden, weight, ids, bias=torch.zeros(1))


def test_a_banned_token_leaves_entropy_and_its_gradient_finite():
    # two of three tokens are possible, equally: ln 2
    logits = torch.tensor([[[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]], requires_grad=True)
    entropy = token_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([[0.0, math.log(2)]]))
    entropy.sum().backward()
    assert logits.grad.isfinite().all()
