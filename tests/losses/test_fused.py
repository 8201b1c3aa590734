"""Loss and gradient one chunk of tokens at a time, against the same loss in the open. Also the collision probability.

B sequences, T tokens, V vocabulary, D width.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.losses import (
    cispo_policy_loss,
    cross_entropy,
    dft_loss,
    fused_linear_loss,
    gspo_policy_loss,
    linear_log_collision,
    linear_logps_and_entropy,
    masked_mean,
    ppo_policy_loss,
    reinforce_policy_loss,
    sapo_policy_loss,
    sequence_mean,
    shift_right,
)
from minirlhf.losses.tiles import chunks_of

B, T, V, D = 3, 5, 7, 4
MASK = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
N = 7  # tokens in the mask
SIZES = [1, 2, 3, N, 100]  # tokens per chunk
NEEDS = {
    cross_entropy: (),
    dft_loss: (),
    reinforce_policy_loss: ("advantages",),
    ppo_policy_loss: ("old_logps", "advantages"),
    cispo_policy_loss: ("old_logps", "advantages"),
    sapo_policy_loss: ("old_logps", "advantages"),
}
losses = pytest.mark.parametrize("token_loss", list(NEEDS), ids=lambda f: f.__name__)
few = settings(max_examples=15)


@pytest.fixture
def tokens_a_chunk(monkeypatch):
    return lambda size, width=V: monkeypatch.setattr("minirlhf.losses.tiles.CHUNK_NUMBERS", size * width)


def head(dtype=torch.float64, seed=0):
    """hidden [B, T, D] and weight [V, D] with gradient, input_ids [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((B, T, D), (V, D)))
    ids = torch.randint(V, (B, T), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def inputs_of(token_loss, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + 100)
    parts = {
        "old_logps": -3 * torch.rand(B, T, generator=generator, dtype=torch.float64) - 0.5,
        "advantages": torch.randn(B, T, generator=generator, dtype=torch.float64),
    }
    return {name: parts[name].to(dtype) for name in NEEDS[token_loss]}


def open_loss(hidden, weight, ids, token_loss, *, mask, count, inputs=None, weights=None, **options):
    """The formula of the docstring; log-probs and entropy 0 outside the mask."""
    logps, entropy = linear_logps_and_entropy(hidden, weight, ids, **options)
    values = token_loss(logps, **(inputs or {}))
    loss = masked_mean(values if weights is None else values * weights, mask, count)
    return loss, torch.where(mask, logps, 0).detach(), torch.where(mask, entropy, 0).detach()


def both(token_loss, dtype=torch.float64, seed=0, **options):
    """Results and gradients of the fused and of the open version."""
    options = {"mask": MASK, "count": 10, "inputs": inputs_of(token_loss, seed), **options}
    answers = []
    for function in (fused_linear_loss, open_loss):
        hidden, weight, ids = head(dtype, seed)
        results = function(hidden, weight, ids, token_loss, **options)
        answers.append((*results, *torch.autograd.grad(results[0], (hidden, weight))))
    return answers


def test_by_hand():
    # logits (ln 3, 0): p = 3/4, 1/4; token 1 is 0: nll -ln 3/4 = 0.287682, entropy 0.562335. Count 2: 0.143841
    # slope of the logits (p - onehot) / 2 = (-1/8, 1/8); hidden (1, 0): weight rows (-1/8, 0), (1/8, 0);
    # hidden: -1/8 (ln 3, 5) + 1/8 (0, 7) = (-0.137327, 0.25); the last position predicts no token
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 3.0]]]).requires_grad_()
    weight = torch.tensor([[math.log(3), 5.0], [0.0, 7.0]]).requires_grad_()
    mask = torch.tensor([[False, True]])
    loss, logps, entropy = fused_linear_loss(hidden, weight, torch.tensor([[1, 0]]), cross_entropy, mask=mask, count=2)
    loss.backward()
    assert_close(loss.detach(), torch.tensor(0.143841))
    assert_close(logps, torch.tensor([[0.0, -0.287682]]))
    assert_close(entropy, torch.tensor([[0.0, 0.562335]]))
    assert_close(hidden.grad, torch.tensor([[[-0.137327, 0.25], [0.0, 0.0]]]))
    assert_close(weight.grad, torch.tensor([[-0.125, 0.0], [0.125, 0.0]]))


def test_tokens_a_chunk_sets_the_size_of_the_chunks(tokens_a_chunk):
    tokens_a_chunk(3)
    assert chunks_of(N, V) == [slice(0, 3), slice(3, 6), slice(6, 7)]


@losses
def test_the_token_losses_of_this_file_look_at_each_token_by_itself(token_loss):
    # tests/algorithms/test_token_losses.py checks the token losses that the trainers use
    inputs = {name: value[MASK] for name, value in inputs_of(token_loss).items()}
    logps = -torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(partial(token_loss, **inputs), logps)
    assert slopes.diagonal().any() and torch.equal(slopes, slopes.diagonal().diag())


@losses
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_open_loss_in_value_and_gradient(tokens_a_chunk, token_loss, size):
    tokens_a_chunk(size)
    assert_close(*both(token_loss), rtol=1e-10, atol=1e-12)
    assert_close(*both(token_loss, temperature=0.7), rtol=1e-10, atol=1e-12)
    assert_close(*both(token_loss, temperature=0.7, softcap=0.8), rtol=1e-10, atol=1e-12)
    weights = torch.rand(B, T, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert_close(*both(token_loss, weights=weights, count=torch.tensor(3.5)), rtol=1e-10, atol=1e-12)


@few
@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=B * T, max_size=B * T), st.sampled_from(list(NEEDS)))
def test_equals_the_open_loss_for_any_mask(seed, flat, token_loss):
    mask = torch.tensor(flat).view(B, T)
    mask[:, 0] = False
    assert_close(*both(token_loss, seed=seed, mask=mask), rtol=1e-10, atol=1e-12)


def test_one_over_length_as_weights_makes_it_the_sequence_mean(tokens_a_chunk):
    tokens_a_chunk(2)
    hidden, weight, ids = head()
    inputs = inputs_of(ppo_policy_loss)
    weights = (1 / MASK.sum(-1, keepdim=True)).expand(B, T).to(torch.float64)
    got = fused_linear_loss(hidden, weight, ids, ppo_policy_loss, mask=MASK, count=B, inputs=inputs, weights=weights)[0]
    values = ppo_policy_loss(linear_logps_and_entropy(hidden, weight, ids)[0], **inputs)
    want = sequence_mean(values, MASK)
    assert_close(got, want)
    assert_close(torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)))


@losses
def test_a_split_batch_with_the_global_count_adds_up(token_loss):
    hidden, weight, ids = head()
    inputs = inputs_of(token_loss)
    options = {"count": N}

    def part(rows):
        taken = {name: value[rows] for name, value in inputs.items()}
        return fused_linear_loss(hidden[rows], weight, ids[rows], token_loss, mask=MASK[rows], inputs=taken, **options)

    whole, halves = part(slice(None))[0], part(slice(0, 1))[0] + part(slice(1, None))[0]
    assert_close(halves, whole)
    assert_close(torch.autograd.grad(halves, (hidden, weight)), torch.autograd.grad(whole, (hidden, weight)))


@pytest.mark.parametrize("token_loss", [cross_entropy, reinforce_policy_loss, ppo_policy_loss, sapo_policy_loss])
def test_gradient_numerically(tokens_a_chunk, token_loss):
    tokens_a_chunk(3)
    hidden, weight, ids = head()
    options = {"mask": MASK, "count": N, "inputs": inputs_of(token_loss), "temperature": 1.3}
    assert torch.autograd.gradcheck(
        lambda h, w: fused_linear_loss(h, w, ids, token_loss, **options)[0], (hidden, weight)
    )


def test_tied_weight_gets_both_gradients(tokens_a_chunk):
    tokens_a_chunk(2)
    grads = []
    for function in (fused_linear_loss, open_loss):
        _, weight, ids = head()
        loss = function(weight[ids] * 2, weight, ids, cross_entropy, mask=MASK, count=N)[0]
        grads.append(torch.autograd.grad(loss, weight)[0])
    assert_close(*grads)
    _, weight, ids = head()
    loss = fused_linear_loss((weight[ids] * 2).detach(), weight, ids, cross_entropy, mask=MASK, count=N)[0]
    # the gradient of the head alone differs
    assert (torch.autograd.grad(loss, weight)[0] - grads[0]).abs().max() > 0.01


@losses
def test_equals_the_open_loss_in_bf16(tokens_a_chunk, token_loss):
    tokens_a_chunk(3)
    got, want = both(token_loss, dtype=torch.bfloat16, inputs=inputs_of(token_loss, dtype=torch.float32))
    assert [x.dtype for x in got] == [torch.float32] * 3 + [torch.bfloat16] * 2
    assert_close(got[:3], want[:3])
    assert_close(got[3:], want[3:], rtol=0.02, atol=1e-3)


def test_in_bf16_the_slope_of_the_logits_is_rounded_once():
    """A head of the identity shows it. The token's own slope is p - 1: taken from a rounded p it would be 0."""
    logits = torch.tensor([[[9.0, 0.0, 1.0], [0.0, 0.0, 0.0]]], dtype=torch.bfloat16, requires_grad=True)
    weight, mask = torch.eye(3, dtype=torch.bfloat16), torch.tensor([[False, True]])
    loss = fused_linear_loss(logits, weight, torch.zeros(1, 2).long(), cross_entropy, mask=mask, count=1)[0]
    slope = logits[0, 0].detach().float().softmax(-1) - torch.tensor([1.0, 0.0, 0.0])
    assert torch.autograd.grad(loss, logits)[0][0, 0].tolist() == slope.bfloat16().tolist()


def test_bf16_gradients_are_summed_over_chunks_in_fp32(tokens_a_chunk):
    # one token per chunk rounds like all tokens at once; a bf16 sum would not
    grads = []
    for size in (1, 1000):
        tokens_a_chunk(size, width=2)
        hidden = torch.ones(1, 601, 1, dtype=torch.bfloat16)
        weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(1, 601, dtype=torch.bool)
        loss = fused_linear_loss(hidden, weight, torch.zeros(1, 601).long(), cross_entropy, mask=mask, count=1)[0]
        grads.append(torch.autograd.grad(loss, weight)[0])
    assert grads[0].tolist() == grads[1].tolist() == [[-300.0], [300.0]]  # 600 tokens, p - 1 = -1/2


@losses
def test_equals_the_open_loss_under_autocast(tokens_a_chunk, token_loss):
    tokens_a_chunk(3)
    inputs = inputs_of(token_loss, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = both(token_loss, dtype=torch.float32, inputs=inputs)
    assert all(x.dtype == torch.float32 for x in got)
    assert_close(got[:3], want[:3])
    assert_close(got[3:], want[3:], rtol=0.02, atol=1e-3)
    plain = both(token_loss, dtype=torch.float32, inputs=inputs)[0]
    assert (got[1] - plain[1]).abs().max() > 1e-4  # the product was taken in bf16
    assert_close(got, plain, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("size", [2, 100])
def test_two_backward_passes_through_a_kept_graph_give_the_same(tokens_a_chunk, size):
    tokens_a_chunk(size)
    hidden, weight, ids = head()
    loss = fused_linear_loss(hidden, weight, ids, dft_loss, mask=MASK, count=N)[0]
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    copies = [x.clone() for x in first]
    tripled = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(loss, (hidden, weight))
    assert_close([x / 3 for x in tripled], copies)
    assert_close(third, tuple(copies))
    assert all(torch.equal(x, y) for x, y in zip(first, copies, strict=True))  # the first gradients are not written to


@pytest.mark.parametrize("use", [lambda x: 3 * x, lambda x: x + 2 * x, lambda x: x * x, lambda x: -x / 4])
def test_operations_on_the_loss_reach_its_gradient(use):
    grads = []
    for function in (fused_linear_loss, open_loss):
        hidden, weight, ids = head()
        loss = use(function(hidden, weight, ids, cross_entropy, mask=MASK, count=N)[0])
        grads.append(torch.autograd.grad(loss, (hidden, weight)))
    assert_close(*grads)


def test_log_probs_and_entropy_carry_no_gradient_and_are_0_outside_the_mask():
    hidden, weight, ids = head()
    loss, logps, entropy = fused_linear_loss(hidden, weight, ids, cross_entropy, mask=MASK, count=N)
    assert loss.requires_grad and not logps.requires_grad and not entropy.requires_grad
    assert not logps[~MASK].any() and not entropy[~MASK].any() and (logps[MASK] < 0).all() and (entropy[MASK] > 0).all()


class Products(TorchDispatchMode):
    """Counts matrix products, and the numbers in the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "linear")
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def test_no_gradient_is_computed_unless_asked_for(tokens_a_chunk):
    tokens_a_chunk(3)  # 3 chunks
    hidden, weight, ids = head()
    asked = []

    def loss_of(logps):
        asked.append(logps.requires_grad)
        return -logps

    def products():
        with Products() as seen:
            loss = fused_linear_loss(hidden, weight, ids, loss_of, mask=MASK, count=N)[0]
        return seen.count, loss

    count, trained = products()
    assert count == 9 and asked == [True] * 3 and trained.requires_grad  # logits and two gradients
    with torch.no_grad():
        count, loss = products()
    assert count == 3 and asked[3:] == [False] * 3 and loss.grad_fn is None
    assert_close(loss, trained.detach())
    hidden, weight = hidden.detach(), weight.detach()
    count, loss = products()
    assert count == 3 and not any(asked[3:]) and not loss.requires_grad


def test_the_first_backward_pass_hands_out_the_forwards_gradients_and_a_second_computes_them_again(tokens_a_chunk):
    tokens_a_chunk(3)  # 3 chunks of 3 products
    hidden, weight, ids = head()
    loss = fused_linear_loss(hidden, weight, ids, cross_entropy, mask=MASK, count=N)[0]
    for products in (0, 9):
        with Products() as seen:
            torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        assert seen.count == products


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_a_frozen_part_gets_no_gradient_and_costs_no_product(tokens_a_chunk, trained):
    tokens_a_chunk(3)
    hidden, weight, ids = head()
    want = torch.autograd.grad(open_loss(hidden, weight, ids, dft_loss, mask=MASK, count=N)[0], (hidden, weight))
    (weight if trained == "hidden" else hidden).requires_grad_(False)
    with Products() as seen:
        loss = fused_linear_loss(hidden, weight, ids, dft_loss, mask=MASK, count=N)[0]
    assert seen.count == 6
    for _ in range(2):
        hidden.grad = weight.grad = None
        loss.backward(retain_graph=True)
        assert_close([hidden.grad, weight.grad], [want[0], None] if trained == "hidden" else [None, want[1]])


def test_the_logits_of_all_tokens_are_never_there(tokens_a_chunk):
    # B T V = 4000 and T V = 2000; chunks of 10 tokens have 500 numbers, hidden 320, weight 200
    tokens_a_chunk(10, width=50)
    hidden, weight = torch.randn(2, 40, 4).requires_grad_(), torch.randn(50, 4).requires_grad_()
    mask = torch.ones(2, 40, dtype=torch.bool)
    with Products() as seen:
        loss = fused_linear_loss(hidden, weight, torch.zeros(2, 40).long(), cross_entropy, mask=mask, count=78)[0]
        loss.backward(retain_graph=True)
        loss.backward()
    assert 300 < seen.largest <= 500
    tokens_a_chunk(1000, width=50)
    with Products() as seen:
        fused_linear_loss(hidden, weight, torch.zeros(2, 40).long(), cross_entropy, mask=mask, count=78)
    assert seen.largest == 78 * 50  # so the assertion above would notice them


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_numbers_outside_the_mask_change_nothing(junk):
    # position t - 1 predicts token t
    positions = MASK.roll(-1, dims=1)
    answers = []
    for filling in (0.0, junk):
        hidden, weight, ids = head()
        hidden = hidden.detach().masked_fill(~positions[..., None], filling).requires_grad_()
        inputs = {name: value.masked_fill(~MASK, filling) for name, value in inputs_of(ppo_policy_loss).items()}
        options = {"mask": MASK, "count": N, "weights": torch.ones(B, T).masked_fill(~MASK, filling)}
        results = fused_linear_loss(hidden, weight, ids, ppo_policy_loss, inputs=inputs, **options)
        answers.append((*results, *torch.autograd.grad(results[0], (hidden, weight))))
    for clean, dirty in zip(*answers, strict=True):
        assert torch.equal(clean, dirty)
    assert not answers[1][3][~positions].any() and answers[1][3][positions].any()


@pytest.mark.parametrize("true_column", [None, 0])
def test_an_empty_mask_gives_0_and_no_gradient(true_column):
    # no position predicts token 0, so column 0 is never computed
    mask = torch.zeros(B, T, dtype=torch.bool)
    if true_column is not None:
        mask[:, true_column] = True
    hidden, weight, ids = head()
    loss, logps, entropy = fused_linear_loss(hidden, weight, ids, cross_entropy, mask=mask, count=1)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss == 0 and not logps.any() and not entropy.any()
    assert [x.shape for x in grads] == [hidden.shape, weight.shape] and not any(x.any() for x in grads)


def test_extreme_logits_stay_finite():
    hidden, weight, ids = head(torch.float32)
    big = (hidden * 1e4).detach().requires_grad_()
    inputs = inputs_of(ppo_policy_loss, dtype=torch.float32)
    results = fused_linear_loss(big, weight, ids, ppo_policy_loss, mask=MASK, count=N, inputs=inputs)
    assert all(x.isfinite().all() for x in (*results, *torch.autograd.grad(results[0], (big, weight))))


def test_inputs_are_not_written_to():
    hidden, weight, ids = head()
    inputs, mask = inputs_of(ppo_policy_loss), MASK.clone()
    mask[0, 0] = True
    tensors = [hidden, weight, ids, mask, *inputs.values()]
    before = [x.detach().clone() for x in tensors]
    loss = fused_linear_loss(hidden, weight, ids, ppo_policy_loss, mask=mask, count=N, inputs=inputs)[0]
    loss.backward()
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True)) and len(inputs) == 2


def test_losses_of_whole_sequences_are_refused():
    hidden, weight, ids = head()
    text = r"^fused_linear_loss: token_loss must return one number per token, \(7,\), got \(\); for losses of whole seq"
    with pytest.raises(ValueError, match=text):
        fused_linear_loss(hidden, weight, ids, lambda logps: -logps.mean(), mask=MASK, count=1)
    with pytest.raises(ValueError, match=r"one number per token, \(7,\), got \(7, 1\)"):
        fused_linear_loss(hidden, weight, ids, lambda logps: -logps[:, None], mask=MASK, count=1)
    # a loss that needs a mask can be called neither without it nor with a mask [B, T]
    inputs = inputs_of(ppo_policy_loss)
    with pytest.raises(TypeError, match="mask"):
        fused_linear_loss(hidden, weight, ids, gspo_policy_loss, mask=MASK, count=1, inputs=inputs)

    def with_its_own_mask(logps, **parts):
        return gspo_policy_loss(logps, **parts, mask=MASK)

    with pytest.raises(ValueError, match=r"^gspo_policy_loss: needed tensors of one shape, got {'mask': \(3, 5\)"):
        fused_linear_loss(hidden, weight, ids, with_its_own_mask, mask=MASK, count=1, inputs=inputs)


@pytest.mark.parametrize("culprit", ["advantages", "weights", "count"])
def test_only_hidden_and_weight_may_ask_for_a_gradient(culprit):
    hidden, weight, ids = head()
    options = {"inputs": inputs_of(reinforce_policy_loss), "weights": torch.ones(B, T), "count": torch.tensor(7.0)}
    (options["inputs"] if culprit == "advantages" else options)[culprit].requires_grad_()
    text = f"^fused_linear_loss: {culprit} asks for a gradient, but only hidden and weight get one; detach it, or"
    with pytest.raises(ValueError, match=text):
        fused_linear_loss(hidden, weight, ids, reinforce_policy_loss, mask=MASK, **options)


def test_a_closure_may_not_smuggle_in_a_gradient():
    hidden, weight, ids = head()
    coef = torch.tensor(0.5, requires_grad=True)
    text = "^fused_linear_loss: token_loss uses a tensor that asks for a gradient, but only hidden and weight get one"
    values = F.linear(hidden, torch.ones(1, D, dtype=torch.float64)).squeeze(-1)  # from a value head
    for captured in (coef, coef.exp(), values[MASK], values.mean(), weight.sum(), hidden[MASK][:, 0]):
        with pytest.raises(ValueError, match=text):
            fused_linear_loss(hidden, weight, ids, lambda logps, x=captured: -logps * x, mask=MASK, count=1)
        loss = fused_linear_loss(hidden, weight, ids, lambda logps, x=captured: -logps * x.detach(), mask=MASK, count=1)
        assert loss[0].requires_grad
    with torch.no_grad():  # no gradient is asked for, so none is lost
        fused_linear_loss(hidden, weight, ids, lambda logps: -logps * coef, mask=MASK, count=1)


def test_mask_shapes_and_temperature_are_checked():
    hidden, weight, ids = head()

    def call(mask=MASK, ids=ids, temperature=1.0, **options):
        fused_linear_loss(hidden, weight, ids, cross_entropy, mask=mask, count=1, temperature=temperature, **options)

    with pytest.raises(ValueError, match="^fused_linear_loss: mask must be bool with True = counts, got torch.int64"):
        call(mask=MASK.long())
    shape = "^fused_linear_loss: needed tensors of one shape, got .*"
    with pytest.raises(ValueError, match=shape + r"'input_ids': \(3, 4\)"):
        call(ids=ids[:, 1:])
    with pytest.raises(ValueError, match=shape + r"'hidden': \(3, 5\)"):
        call(mask=MASK[:2], ids=ids[:2])
    with pytest.raises(ValueError, match=shape + r"'advantages': \(3, 1\)"):
        call(inputs={"advantages": torch.zeros(B, 1)})
    with pytest.raises(ValueError, match=shape + r"'weights': \(3,\)"):
        call(weights=torch.zeros(B))
    for temperature in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"^fused_linear_loss: temperature must be > 0, got {temperature}; greedy"):
            call(temperature=temperature)


def test_a_weight_of_another_width_is_refused():
    hidden, weight, ids = head()
    with pytest.raises(ValueError, match="^fused_linear_loss: needed"):
        fused_linear_loss(hidden, weight[:, 1:], ids, cross_entropy, mask=MASK, count=1)


def test_log_collision_refuses_a_weight_of_another_width():
    hidden, weight, _ = head()
    with pytest.raises(ValueError, match="^linear_log_collision: needed"):
        linear_log_collision(hidden, weight[:, 1:])


def test_log_collision_by_hand():
    # logits (ln 3, 0): 9/16 + 1/16 = 5/8, ln -0.470004. Temperature 1/2: (ln 9, 0), 0.81 + 0.01 = 0.82, ln -0.198451
    hidden, weight = torch.tensor([[[1.0], [0.0], [9.0]]]), torch.tensor([[math.log(3)], [0.0]])
    assert_close(linear_log_collision(hidden, weight), torch.tensor([[0.0, -0.470004, -0.693147]]))
    assert_close(linear_log_collision(hidden, weight, temperature=0.5), torch.tensor([[0.0, -0.198451, -0.693147]]))


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.7, 0.8)])
def test_log_collision_equals_the_plain_formula_in_any_chunks(tokens_a_chunk, size, temperature, softcap):
    tokens_a_chunk(size)
    hidden, weight, _ = head()
    got = linear_log_collision(hidden, weight, temperature, softcap)
    logits = F.linear(hidden, weight)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    want = shift_right((logits / temperature).softmax(-1).square().sum(-1).log())
    want[:, 0] = 0
    assert_close(got, want.detach())
    assert not got.requires_grad and (got <= 0).all() and (got >= -math.log(V) - 1e-12).all()


def test_log_collision_widens_bf16_takes_autocast_and_stays_finite():
    hidden, weight, _ = head(torch.float32)
    want = linear_log_collision(hidden, weight)
    got = linear_log_collision(hidden.bfloat16(), weight.bfloat16())
    assert got.dtype == torch.float32
    assert_close(got, want, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_log_collision(hidden, weight), got)
    assert linear_log_collision(hidden * 1e4, weight).isfinite().all()


def test_log_collision_never_holds_all_logits_and_checks_the_temperature(tokens_a_chunk):
    tokens_a_chunk(10, width=50)
    with Products() as seen:
        linear_log_collision(torch.randn(2, 40, 4), torch.randn(50, 4))
    assert seen.largest <= 500
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        linear_log_collision(torch.zeros(1, 2, 3), torch.zeros(5, 3), temperature=0)
