"""DFT, the generalised Jensen-Shannon divergence, its chunked form over two heads, and MiniLLM's advantages.

B = 3 sequences, T = 5 tokens, V = 7; hidden widths 4 (student) and 6 (teacher).
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.losses import (
    cross_entropy,
    dft_loss,
    generalised_js,
    linear_distillation_loss,
    minillm_advantages,
    shift_right,
)

B, T, V = 3, 5, 7
seeds, betas = st.integers(0, 2**31), st.sampled_from([0.0, 1.0]) | st.floats(0.001, 0.999)
few = settings(max_examples=40)


def bools(*rows):
    return torch.tensor(rows) == 1


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_distributions(seed, scale=2.0, rows=3):
    return (scale * randn(seed, 2, rows, V)).log_softmax(-1).unbind()


def kl(p, q):
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


@pytest.fixture
def chunk_numbers(monkeypatch):
    return lambda numbers: monkeypatch.setattr("minirlhf.losses.tiles.CHUNK_NUMBERS", numbers)


# ---- DFT


def test_dft_by_hand():
    # -p ln p: 1/2 ln 2, 1/4 ln 4, 0
    assert_close(dft_loss(torch.tensor([[0.5, 0.25, 1.0]]).log()), torch.tensor([[0.346574, 0.346574, 0.0]]))


@few
@given(seeds)
def test_dft_gradient_is_that_of_the_nll_times_p(seed):
    logps = (-3 * randn(seed, 2, 3).abs()).requires_grad_()
    (grad,) = torch.autograd.grad(dft_loss(logps).sum(), logps)
    (nll_grad,) = torch.autograd.grad(cross_entropy(logps).sum(), logps)
    assert_close(grad, logps.detach().exp() * nll_grad)
    # this is also the gradient of -p
    (want,) = torch.autograd.grad(-logps.exp().sum(), logps)
    assert_close(grad, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dft_of_the_hopeless_and_the_certain(dtype):
    logps = torch.tensor([-1e4, 0.0, -1.0], dtype=dtype, requires_grad=True)
    losses = dft_loss(logps)
    losses.sum().backward()
    # 1 / e = 0.367879
    tolerance = {"atol": 2e-3, "rtol": 0} if dtype == torch.bfloat16 else {"atol": 1e-6, "rtol": 0}
    assert losses[:2].tolist() == [0.0, 0.0] and logps.grad[:2].tolist() == [0.0, -1.0]
    assert_close(losses[2].double(), torch.tensor(0.367879, dtype=torch.float64), **tolerance)


# ---- the generalised Jensen-Shannon divergence


def test_generalised_js_by_hand():
    # student (1/2, 1/2), teacher (3/4, 1/4).  forward: 3/4 ln 3/2 + 1/4 ln 1/2 = 0.304099 - 0.173287
    # reverse: 1/2 ln 2/3 + 1/2 ln 2 = 1/2 ln 4/3
    # beta 1/2: mixture (5/8, 3/8); teacher 3/4 ln 6/5 + 1/4 ln 2/3 = 0.136741 - 0.101366 = 0.035375;
    # student 1/2 ln 4/5 + 1/2 ln 4/3 = 1/2 ln 16/15 = 0.032269; half of both 0.033822
    # beta 1/4: mixture (9/16, 7/16); teacher 3/4 ln 4/3 + 1/4 ln 4/7 = 0.215762 - 0.139904 = 0.075858;
    # student 1/2 ln 8/9 + 1/2 ln 8/7 = 1/2 ln 64/63 = 0.007874; 0.25 * 0.075858 + 0.75 * 0.007874
    student, teacher = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    for beta, want in ((0.0, 0.130812), (1.0, 0.143841), (0.5, 0.033822), (0.25, 0.024870)):
        assert_close(generalised_js(student, teacher, beta=beta), torch.tensor(want), rtol=1e-4, atol=1e-6)


@few
@given(seeds)
def test_ends_are_the_forward_and_the_reverse_kl(seed):
    student, teacher = two_distributions(seed)
    assert_close(generalised_js(student, teacher, beta=0), kl(teacher, student))
    assert_close(generalised_js(student, teacher, beta=1), kl(student, teacher))
    # for other beta: both terms of the definition
    mixture = (0.3 * teacher.exp() + 0.7 * student.exp()).log()
    want = 0.3 * kl(teacher, mixture) + 0.7 * kl(student, mixture)
    assert_close(generalised_js(student, teacher, beta=0.3), want)


@few
@given(seeds, betas)
def test_zero_for_equals_positive_otherwise_and_mirrored_in_beta(seed, beta):
    student, teacher = two_distributions(seed)
    assert_close(generalised_js(student, student, beta=beta), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    losses = generalised_js(student, teacher, beta=beta)
    assert (losses >= 0).all()
    assert_close(generalised_js(teacher, student, beta=1 - beta), losses)
    half = generalised_js(student, teacher, beta=0.5)
    assert_close(generalised_js(teacher, student, beta=0.5), half)
    assert (half <= math.log(2)).all()


@few
@given(seeds, betas)
def test_gradient_vanishes_where_student_and_teacher_agree(seed, beta):
    logits = randn(seed, 2, V).requires_grad_()
    losses = generalised_js(logits.log_softmax(-1), logits.detach().log_softmax(-1), beta=beta)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


def test_small_beta_over_beta_tends_to_the_forward_kl_and_large_to_the_reverse():
    # the formula itself is 0 in both limits; beta 0 and 1 are defined as the two KLs
    student, teacher = two_distributions(0, scale=0.5)
    assert_close(generalised_js(student, teacher, beta=1e-5) / 1e-5, kl(teacher, student), rtol=1e-3, atol=0)
    assert_close(generalised_js(student, teacher, beta=1 - 1e-5) / 1e-5, kl(student, teacher), rtol=1e-3, atol=0)


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 1])
def test_gradcheck_of_generalised_js(beta):
    student, teacher = (x.detach().requires_grad_() for x in two_distributions(0))
    assert torch.autograd.gradcheck(partial(generalised_js, beta=beta), (student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_extreme_logits_stay_finite_in_value_and_gradient(beta, dtype):
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [-1e4, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    losses = generalised_js(logits.log_softmax(-1), logits.detach().roll(1, 0).log_softmax(-1), beta=beta)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad.isfinite().all()


def test_bf16_is_close_to_fp64():
    student, teacher = (x.bfloat16() for x in two_distributions(1, rows=16))
    for beta in (0, 0.5, 1):
        losses = generalised_js(student, teacher, beta=beta).double()
        assert_close(losses, generalised_js(student.double(), teacher.double(), beta=beta), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_generalised_js_refuses_other_betas(beta):
    with pytest.raises(ValueError, match=rf"^generalised_js: .* beta in \[0, 1\], got \(2,\), \(2,\) and {beta}; stud"):
        generalised_js(torch.zeros(2), torch.zeros(2), beta=beta)


def test_generalised_js_refuses_two_vocabularies():
    with pytest.raises(
        ValueError, match=r"^generalised_js: .* got \(2, 3\), \(2, 4\) and 0.5; student and teacher must"
    ):
        generalised_js(torch.zeros(2, 3), torch.zeros(2, 4), beta=0.5)


# ---- two heads, in chunks


def heads(seed=0, dtype=torch.float64):
    """hidden, weight, teacher_hidden, teacher_weight, all with gradient, and a mask with column 0 set."""
    shapes = (B, T, 4), (V, 4), (B, T, 6), (V, 6)
    leaves = [randn(seed + i, *shape).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    return *leaves, bools([1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0])


def chunked(hidden, weight, teacher_hidden, teacher_weight, mask, **options):
    teacher = {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight}
    return linear_distillation_loss(hidden, weight, **teacher, mask=mask, **options)


def dense(hidden, weight, teacher_hidden, teacher_weight, mask, beta=0.5, temperature=1.0):
    student, teacher = (
        (h @ w.T / temperature).log_softmax(-1)
        for h, w in ((hidden, weight), (teacher_hidden.detach(), teacher_weight.detach()))
    )
    losses = shift_right(generalised_js(student, teacher, beta=beta))
    return torch.where(mask, losses, 0)


@pytest.mark.parametrize("tokens_at_a_time", [1, 2, 3, 6, 100])
@pytest.mark.parametrize("beta, temperature", [(0, 1.0), (0.3, 1.0), (0.5, 0.7), (1, 2.0)])
def test_chunked_is_dense_in_value_and_gradient(chunk_numbers, tokens_at_a_time, beta, temperature):
    chunk_numbers(tokens_at_a_time * V)
    noise = randn(9, B, T)
    results = []
    for function in (chunked, dense):
        *leaves, mask = heads()
        losses = function(*leaves, mask, beta=beta, temperature=temperature)
        results.append((losses, torch.autograd.grad((noise * losses).sum(), leaves[:2])))
    (losses, grads), (want, want_grads) = results
    assert losses.dtype == torch.float64 and (want[:, 1:] != 0).sum() == 7
    assert_close(losses, want, rtol=1e-11, atol=1e-11)
    assert_close(grads, want_grads, rtol=1e-11, atol=1e-11)


def test_linear_distillation_by_hand():
    # position 0 predicts token 1: student (1/2, 1/2) against teacher (3/4, 1/4): 0.130812; at temperature 1/2 the
    # teacher is (9/10, 1/10): 0.9 ln 1.8 + 0.1 ln 0.2 = 0.529008 - 0.160944. Token 2 is not in the mask, token 0 never
    hidden, teacher_hidden = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [9.0], [-9.0]]])
    weight, teacher_weight = torch.zeros(2, 1), torch.tensor([[math.log(3)], [0.0]])
    parts = hidden, weight, teacher_hidden, teacher_weight, bools([1, 1, 0])
    assert_close(chunked(*parts, beta=0), torch.tensor([[0.0, 0.130812, 0.0]]))
    assert_close(chunked(*parts, beta=0, temperature=0.5), torch.tensor([[0.0, 0.368064, 0.0]]))


def test_numbers_outside_the_mask_are_not_read_and_get_no_gradient(chunk_numbers):
    chunk_numbers(2 * V)
    hidden, weight, teacher_hidden, teacher_weight, mask = heads()
    want = chunked(hidden, weight, teacher_hidden, teacher_weight, mask)
    speakers = bools([1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 1, 0, 0])  # the position before each token of the mask
    with torch.no_grad():
        hidden[~speakers], teacher_hidden[~speakers] = math.nan, math.nan
    losses = chunked(hidden, weight, teacher_hidden, teacher_weight, mask)
    assert torch.equal(losses, want) and (losses[:, 0] == 0).all() and (losses[~mask] == 0).all()
    losses.sum().backward()
    assert torch.equal((hidden.grad != 0).all(-1), speakers) and torch.equal((hidden.grad != 0).any(-1), speakers)
    assert weight.grad.isfinite().all()
    assert teacher_hidden.grad is None and teacher_weight.grad is None


@pytest.mark.parametrize("mask", [torch.zeros(B, T, dtype=torch.bool), bools(*[[1] + [0] * (T - 1)] * B)])
def test_an_empty_mask_gives_0_with_zero_gradients(mask):
    # an empty mask, and a mask of token 0 alone: no position predicts token 0
    hidden, weight, *teacher, _ = heads()
    losses = chunked(hidden, weight, *teacher, mask)
    assert torch.equal(losses, torch.zeros(B, T, dtype=torch.float64))
    losses.sum().backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden)) and torch.equal(weight.grad, torch.zeros_like(weight))


def test_mask_is_not_written_to():
    *parts, mask = heads()
    before = mask.clone()
    chunked(*parts, mask)
    assert torch.equal(mask, before)


def test_splitting_a_batch_adds_up(chunk_numbers):
    chunk_numbers(2 * V)
    hidden, weight, teacher_hidden, teacher_weight, mask = heads()
    rows = [
        chunked(hidden[i : i + 1], weight, teacher_hidden[i : i + 1], teacher_weight, mask[i : i + 1]) for i in range(B)
    ]
    assert_close(torch.cat(rows), chunked(hidden, weight, teacher_hidden, teacher_weight, mask))


def test_gradcheck_of_linear_distillation(chunk_numbers):
    chunk_numbers(3 * V)
    hidden, weight, *teacher, mask = heads()
    teacher = [x.detach() for x in teacher]
    assert torch.autograd.gradcheck(lambda h, w: chunked(h, w, *teacher, mask, beta=0.3), (hidden, weight))


def test_linear_distillation_widens_bf16():
    parts = heads(dtype=torch.bfloat16)
    losses = chunked(*parts)
    assert losses.dtype == torch.float32
    assert_close(losses.double(), dense(*(x.double() for x in parts[:4]), parts[4]), rtol=0.05, atol=0.02)
    losses.sum().backward()
    assert parts[0].grad.dtype == torch.bfloat16 and parts[0].grad.isfinite().all()


def test_linear_distillation_refuses_wrong_shapes():
    hidden, weight, teacher_hidden, teacher_weight, mask = heads()
    needed = "^linear_distillation_loss: needed one vocabulary and one batch, got weights"
    with pytest.raises(ValueError, match=rf"{needed} \(7, 4\) and \(5, 6\)"):
        chunked(hidden, weight, teacher_hidden, teacher_weight[:5], mask)
    with pytest.raises(ValueError, match=rf"{needed} .*hidden \(3, 5, 4\) and \(3, 4, 6\)"):
        chunked(hidden, weight, teacher_hidden[:, :4], teacher_weight, mask)
    with pytest.raises(ValueError, match="^linear_distillation_loss: mask must be bool .*int64"):
        chunked(hidden, weight, teacher_hidden, teacher_weight, mask.long())
    with pytest.raises(ValueError, match=r"^linear_distillation_loss: .*'mask': \(3, 4\), 'first_column': \(3, 5\)"):
        chunked(hidden, weight, teacher_hidden, teacher_weight, mask[:, :4])
    with pytest.raises(ValueError, match=r"^generalised_js: .*beta in \[0, 1\]"):
        chunked(hidden, weight, teacher_hidden, teacher_weight, mask, beta=2)


# ---- MiniLLM


def test_minillm_advantages_by_hand():
    # teacher - student: 1, -2, 4, -1 on the mask. After the first: (-2 + 4 - 1) / 3, then (4 - 1) / 2, -1, and 0
    gaps = torch.tensor([[9.0, 1.0, -2.0, 4.0, -1.0, 9.0]])
    logps = -torch.ones(1, 6)
    mask = bools([0, 1, 1, 1, 1, 0])
    advantages = minillm_advantages(logps, teacher_logps=logps + gaps, mask=mask)
    assert_close(advantages, torch.tensor([[0.0, 1 / 3, 1.5, -1.0, 0.0, 0.0]]))
    # a gap in the mask is passed over: after the first 4 - 1 of 2, after the 4: -1
    advantages = minillm_advantages(logps, teacher_logps=logps + gaps, mask=bools([0, 1, 0, 1, 1, 0]))
    assert_close(advantages, torch.tensor([[0.0, 1.5, 0.0, -1.0, 0.0, 0.0]]))


@few
@given(seeds)
def test_minillm_advantages_are_a_mean_over_the_later_tokens(seed):
    logps, teacher_logps, mask = randn(seed, 4, 6), randn(seed + 1, 4, 6), randn(seed + 2, 4, 6) > -0.5
    want = torch.zeros(4, 6, dtype=torch.float64)
    for b in range(4):
        for t in range(6):
            later = mask[b].clone()
            later[: t + 1] = False
            if mask[b, t] and later.any():
                want[b, t] = (teacher_logps - logps)[b, later].mean()
    logps[~mask], teacher_logps[~mask] = math.nan, math.inf  # junk
    logps.requires_grad_(), teacher_logps.requires_grad_()
    advantages = minillm_advantages(logps, teacher_logps=teacher_logps, mask=mask)
    assert_close(advantages, want)
    assert not advantages.requires_grad


def test_minillm_advantages_refuse_wrong_shapes():
    logps, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="^minillm_advantages: mask must be bool .*float32"):
        minillm_advantages(logps, teacher_logps=logps, mask=mask.float())
    with pytest.raises(ValueError, match=r"^minillm_advantages: .*'teacher_logps': \(2, 2\)"):
        minillm_advantages(logps, teacher_logps=logps[:, :2], mask=mask)
