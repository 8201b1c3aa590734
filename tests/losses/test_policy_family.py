"""The policy family beyond PPO: REINFORCE, GSPO, GMPO, CISPO, SAPO, VESPO and the weights for a foreign sampler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import (
    cispo_policy_loss,
    gmpo_policy_loss,
    gspo_policy_loss,
    gspo_token_policy_loss,
    high_entropy_mask,
    masked_mean,
    masked_sum,
    ppo_policy_loss,
    reinforce_policy_loss,
    sapo_policy_loss,
    sequence_mean,
    truncated_importance_weights,
    vespo_policy_loss,
)

seeds = st.integers(0, 2**31)
few = settings(max_examples=25)
TOKEN = [ppo_policy_loss, cispo_policy_loss, sapo_policy_loss]  # each token by itself
ROW = [gspo_policy_loss, gspo_token_policy_loss, gmpo_policy_loss, vespo_policy_loss]  # take a mask
EVERY = [reinforce_policy_loss, *TOKEN, *ROW]
every = pytest.mark.parametrize("loss", EVERY)
by_row = pytest.mark.parametrize("loss", ROW)
GAPS = torch.tensor([[False, True, True, False], [True, True, True, True], [False, False, True, False]])


def row(*numbers):
    return torch.tensor([numbers])


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(loss, logps, old_logps, advantages, mask, **options):
    """Call any loss of the family with the arguments that it takes."""
    if loss in ROW:
        options["mask"] = mask
    if loss is not reinforce_policy_loss:
        options["old_logps"] = old_logps
    return loss(logps, advantages=advantages, **options)


def batch(seed, step=0.1, mask=GAPS, dtype=torch.float64):
    """logps near old_logps, and advantages that are equal in a row, like group advantages."""
    old_logps = -randn(seed, *mask.shape).abs() - 0.1
    logps = old_logps + step * randn(seed + 1, *mask.shape)
    advantages = randn(seed + 2, len(mask), 1).expand(mask.shape)
    return [x.to(dtype).clone() for x in (logps, old_logps, advantages)]


def test_reinforce_by_hand():
    # -2 * -0.5 = 1, -(-3) * -1 = -3; the slope is -A
    logps = row(-0.5, -1.0).requires_grad_()
    losses = reinforce_policy_loss(logps, advantages=row(2.0, -3.0))
    assert_close(losses, row(1.0, -3.0))
    assert_close(torch.autograd.grad(losses.sum(), logps)[0], row(-2.0, 3.0))


RATIOS = row(1.44, 1.0, 50.0).log(), torch.tensor([[True, True, False]])  # geometric mean over the mask: 1.2


@pytest.mark.parametrize("loss", [gspo_policy_loss, gspo_token_policy_loss])
def test_gspo_by_hand(loss):
    # s = sqrt(1.44 * 1) = 1.2 in every column; bounds 0.9 and 1.1: A = 1 -> -1.1, A = -1 -> 1.2 (the worse branch)
    # clip_eps_high 0.3: A = 1 -> -1.2.  The default of 3e-4: -1.0003
    logps, mask = RATIOS
    parts = {"old_logps": torch.zeros(1, 3), "mask": mask}
    ones = torch.ones(1, 3)
    assert_close(loss(logps, advantages=ones, **parts, clip_eps=0.1), -1.1 * ones)
    assert_close(loss(logps, advantages=-ones, **parts, clip_eps=0.1), 1.2 * ones)
    assert_close(loss(logps, advantages=ones, **parts, clip_eps=0.1, clip_eps_high=0.3), -1.2 * ones)
    assert_close(loss(logps, advantages=ones, **parts), -1.0003 * ones)


def test_gspo_gradient_by_hand():
    # under the sum over the mask a row's loss counts twice, each log-prob moves ln s by 1/2: slope -s A, A = -2: 2.4
    # the token version takes each token's own advantage: -s A_t = 2.4 and -1.2, the last clipped away at 1.1: 0
    logps, mask = RATIOS
    logps = logps.clone().requires_grad_()
    parts = {"old_logps": torch.zeros(1, 3), "mask": mask, "clip_eps": 0.1}
    losses = gspo_policy_loss(logps, advantages=row(-2.0, -2.0, -2.0), **parts)
    assert_close(torch.autograd.grad(masked_sum(losses, mask), logps)[0], row(2.4, 2.4, 0.0))
    losses = gspo_token_policy_loss(logps, advantages=row(-2.0, 1.0, 5.0), **parts)
    assert_close(torch.autograd.grad(masked_sum(losses, mask), logps)[0], row(2.4, 0.0, 0.0))
    losses = gspo_token_policy_loss(logps, advantages=row(-2.0, 1.0, 5.0), **parts, clip_eps_high=0.3)
    assert_close(torch.autograd.grad(masked_sum(losses, mask), logps)[0], row(2.4, -1.2, 0.0))


def test_gmpo_by_hand():
    # log r = 1, -0.2, eps 0.4. A = 1: 0.4, -0.2, mean 0.1, -e^0.1 = -1.105171. A = -1: 1, -0.2, mean 0.4, 1.491825
    # log r = -1, 0.2.          A = 1: -1, 0.2, mean -0.4, -0.670320.   A = -1: -0.4, 0.2, mean -0.1, 0.904837
    log_ratio = torch.tensor([[1.0, -0.2, 9.0]] * 2 + [[-1.0, 0.2, 9.0]] * 2)
    mask = torch.tensor([[True, True, False]] * 4)
    advantages = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).expand(4, 3)
    losses = gmpo_policy_loss(log_ratio - 1, old_logps=torch.full((4, 3), -1.0), advantages=advantages, mask=mask)
    want = torch.tensor([[-1.105171], [1.491825], [-0.670320], [0.904837]]).expand(4, 3)
    assert_close(losses, want)
    # eps 0.1: the first row is 0.1, -0.2 -> -e^-0.05 = -0.951229
    parts = {"old_logps": torch.zeros(1, 3), "advantages": torch.ones(1, 3), "mask": mask[:1]}
    assert_close(gmpo_policy_loss(log_ratio[:1], **parts, clip_eps=0.1), torch.full((1, 3), -0.951229))


def test_gmpo_gradient_vanishes_for_the_tokens_beyond_the_range():
    # the first row above: sum over the mask -2 e^0.1, token 0 clipped, token 1 moves the mean by 1/2: slope -e^0.1
    logps = row(1.0, -0.2, 9.0).requires_grad_()
    mask = torch.tensor([[True, True, False]])
    losses = gmpo_policy_loss(logps, old_logps=torch.zeros(1, 3), advantages=torch.ones(1, 3), mask=mask)
    assert_close(torch.autograd.grad(masked_sum(losses, mask), logps)[0], row(0.0, -1.105171, 0.0))


def test_cispo_by_hand():
    # p 0.1 -> 0.2, r 2: -2 ln 0.2 = 3.218876, slope -2.  p 0.01 -> 0.1, r 10, held at 5: -5 ln 0.1 = 11.512925
    # and slope -5; the same with A = -1: slope +5.  r 0.01, no lower bound: slope -0.01, -0.01 ln 0.001 = 0.069078
    logps = row(0.2, 0.1, 0.1, 0.001).log().requires_grad_()
    old_logps = row(0.1, 0.01, 0.01, 0.1).log()
    losses = cispo_policy_loss(logps, old_logps=old_logps, advantages=row(1.0, 1.0, -1.0, 1.0))
    assert_close(losses, row(3.218876, 11.512925, -11.512925, 0.069078))
    assert_close(torch.autograd.grad(losses.sum(), logps)[0], row(-2.0, -5.0, 5.0, -0.01))
    losses = cispo_policy_loss(logps, old_logps=old_logps, advantages=torch.ones(1, 4), clip_eps_high=0.5)
    assert_close(torch.autograd.grad(losses.sum(), logps)[0], row(-1.5, -1.5, -1.5, -0.01))


def test_sapo_by_hand():
    # r 1: -4 / 1 * 0.5 = -2; A = -1: 4 / 1.05 * 0.5 = 1.904762.  r 2, A = 1: -4 sigmoid(1) = -2.924234
    # r 2, A = -1: 4 / 1.05 sigmoid(1.05) = 2.822000.  slopes -4 sigmoid'(tau (r - 1)) r A: -1; 1
    # sigmoid'(1) = 0.196612: -1.572895;  sigmoid'(1.05) = 0.740775 * 0.259225 = 0.192028: 1.536220
    logps = row(1.0, 1.0, 2.0, 2.0).log().requires_grad_()
    losses = sapo_policy_loss(logps, old_logps=torch.zeros(1, 4), advantages=row(1.0, -1.0, 1.0, -1.0))
    assert_close(losses, row(-2.0, 1.904762, -2.924234, 2.822000))
    assert_close(torch.autograd.grad(losses.sum(), logps)[0], row(-1.0, 1.0, -1.572895, 1.536220))
    # tau 2 and 4 at r = 1: -4 / 2 * 0.5 = -1 and 4 / 4 * 0.5 = 0.5; A = 0 gives 0
    zeros, advantages = torch.zeros(1, 3), row(1.0, -1.0, 0.0)
    losses = sapo_policy_loss(zeros, old_logps=zeros, advantages=advantages, tau_pos=2.0, tau_neg=4.0)
    assert_close(losses, row(-1.0, 0.5, 0.0))


def test_vespo_by_hand():
    # w = 4 * 0.5 = 2 in both rows. A = 1: phi = 2^2 e^(3 (1 - 2)) = 4 e^-3 = 0.199148
    # A = -1: phi = 2^3 e^(2 (1 - 2)) = 8 e^-2 = 1.082682.  Slope -phi A in the mask, loss -phi A log p
    logps = row(4.0, 0.5, 1.0).log().sub(2).repeat(2, 1).requires_grad_()
    mask = torch.tensor([[True, True, False]] * 2)
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    parts = {"old_logps": torch.full((2, 3), -2.0), "advantages": advantages, "mask": mask}
    losses = vespo_policy_loss(logps, **parts)
    phi = torch.tensor([[0.199148], [1.082682]]).expand(2, 3)
    assert_close(losses, -phi * advantages * logps)
    slopes = torch.autograd.grad(masked_sum(losses, mask), logps)[0]
    assert_close(slopes, torch.where(mask, -phi * advantages, 0))
    # k 1, lambda 1 for A > 0: 2 e^-1 = 0.735759; k 2, lambda 1 for A < 0: 4 e^-1 = 1.471518
    losses = vespo_policy_loss(logps, **parts, k_pos=1.0, lambda_pos=1.0, k_neg=2.0, lambda_neg=1.0)
    slopes = torch.autograd.grad(masked_sum(losses, mask), logps)[0]
    assert_close(slopes, torch.tensor([[-0.735759, -0.735759, 0.0], [1.471518, 1.471518, 0.0]]))


def test_vespo_fades_on_both_sides_of_the_policy():
    # phi falls from 1 as the row moves away by e^-8, e^-1, e^1, e^2; at e^-8 it is e^(-16 + 3 (1 - e^-8)) = 2.26e-6
    logps, mask = torch.tensor([[-8.0], [-1.0], [0.0], [1.0], [2.0]]).requires_grad_(), torch.ones(5, 1).bool()
    losses = vespo_policy_loss(logps, old_logps=torch.zeros(5, 1), advantages=torch.ones(5, 1), mask=mask)
    phi = -torch.autograd.grad(losses.sum(), logps)[0].flatten()
    assert phi[0].item() == pytest.approx(2.258e-6, rel=1e-3)
    assert phi[2] == 1 and phi[0] < phi[1] < phi[2] and phi[4] < phi[3] < phi[2] and phi.min() >= 0


def test_truncated_weights_by_hand_and_detached():
    # ratios 0.5, 2, 8, cap 2 by default
    logps, sampler = row(0.1, 0.4, 0.8).log().requires_grad_(), row(0.2, 0.2, 0.1).log().requires_grad_()
    weights = truncated_importance_weights(logps, sampler_logps=sampler)
    assert_close(weights, row(0.5, 2.0, 2.0))
    assert not weights.requires_grad
    assert_close(truncated_importance_weights(logps, sampler_logps=sampler, cap=3.0), row(0.5, 2.0, 3.0))
    assert_close(truncated_importance_weights(logps, sampler_logps=sampler, cap=1), row(0.5, 1.0, 1.0))


def over_2(reduce):
    return lambda losses, mask: reduce(losses, mask) / 2  # 2 accumulation steps


def total_over(count):
    return lambda losses, mask: masked_sum(losses, mask) / count


@pytest.mark.parametrize(
    "name, loss, options, reduce",
    [
        ("dr_grpo", ppo_policy_loss, {}, total_over(4 * 8 * 2)),  # 4 rows of at most 8 tokens, 2 steps
        ("sapo", sapo_policy_loss, {}, over_2(sequence_mean)),
        ("vespo", vespo_policy_loss, {}, total_over(40)),
        ("cispo", cispo_policy_loss, {}, total_over(40)),
        ("gspo", gspo_policy_loss, {"clip_eps": 0.2}, over_2(sequence_mean)),
        ("gspo", gspo_token_policy_loss, {"clip_eps": 0.2}, over_2(sequence_mean)),
        ("luspo_sequence", gspo_policy_loss, {"clip_eps": 0.2}, total_over(4 * 2)),  # a row's loss times its length
        ("luspo_token", ppo_policy_loss, {}, total_over(4 * 2)),
        ("dual_clip", ppo_policy_loss, {"dual_clip": 1.5}, over_2(sequence_mean)),  # reaches no token of this batch
    ],
)
def test_golden(golden, name, loss, options, reduce):
    inputs, figures, mask = golden["inputs"], golden["policy_family"][name], golden["inputs"]["mask"]
    logps = inputs["logp"].clone().requires_grad_()
    value = reduce(losses_of(loss, logps, inputs["old"], inputs["adv"][:, None].expand(4, 5), mask, **options), mask)
    value.backward()
    assert value.item() == pytest.approx(figures["loss"], rel=1e-10)
    assert_close(logps.grad, figures["grad"], rtol=1e-10, atol=1e-12)


def test_golden_top_entropy_keeps_the_average_over_all_tokens(golden):
    # a fifth of the 14 tokens: the three above the 80% quantile; the other losses are 0, rows keep their lengths
    inputs, figures, mask = golden["inputs"], golden["policy_family"]["top_entropy"], golden["inputs"]["mask"]
    logps = inputs["logp"].clone().requires_grad_()
    losses = ppo_policy_loss(logps, old_logps=inputs["old"], advantages=inputs["adv"][:, None].expand(4, 5))
    kept = high_entropy_mask(inputs["entropy"], mask, 0.2)
    assert kept.nonzero().tolist() == [[1, 1], [2, 2], [3, 1]]
    loss = sequence_mean(losses * kept, mask) / 2
    loss.backward()
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-10)
    assert_close(logps.grad, figures["grad"], rtol=1e-10, atol=1e-12)


def test_golden_weights_for_a_foreign_sampler_multiply_the_losses(golden):
    # its weights of the four rows were 0.9, 1.1, 0 and 1, so the sampler's log-probs are higher by -ln weight; for the
    # weight 0 they are 40 nats higher (clamped to e^-20)
    inputs, figures, mask = golden["inputs"], golden["policy_family"]["sampler_weights"], golden["inputs"]["mask"]
    logps = inputs["logp"].clone().requires_grad_()
    gap = torch.tensor([[0.9], [1.1], [math.exp(-40)], [1.0]], dtype=torch.float64).log()
    weights = truncated_importance_weights(inputs["old"], sampler_logps=inputs["old"] - gap)
    losses = ppo_policy_loss(logps, old_logps=inputs["old"], advantages=inputs["adv"][:, None].expand(4, 5))
    loss = sequence_mean(losses * weights, mask) / 2
    loss.backward()
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-7)
    assert_close(logps.grad, figures["grad"])


@pytest.mark.parametrize("loss", [reinforce_policy_loss, sapo_policy_loss, gspo_policy_loss, gmpo_policy_loss])
def test_gradient_numerically(loss):
    # the losses without a detached part, away from the kinks; log-ratios of 0.1 on average, bounds of 0.25 and 1.5
    logps, old_logps, advantages = (x.requires_grad_() for x in batch(3))
    options = {gspo_policy_loss: {"clip_eps": 0.25}, gmpo_policy_loss: {"clip_eps": 1.5}}.get(loss, {})

    def function(logps, old_logps, advantages):
        return losses_of(loss, logps, old_logps, advantages, GAPS, **options)

    assert torch.autograd.gradcheck(function, (logps, old_logps, advantages))


@few
@given(seeds)
def test_weights_that_are_held_fixed_are_the_slopes(seed):
    # cispo, vespo: loss = -weight A log p, and the weight carries no gradient: the slope is loss / log p
    logps, old_logps, advantages = batch(seed, step=1.0)
    logps = logps.requires_grad_()
    for loss in (cispo_policy_loss, vespo_policy_loss):
        losses = losses_of(loss, logps, old_logps, advantages, GAPS)
        assert_close(torch.autograd.grad(losses.sum(), logps)[0], losses.detach() / logps.detach())


@few
@given(seeds, st.sampled_from([0.02, 0.2, 2.0]))
def test_gspo_token_is_gspo_in_value_and_gradient_when_advantages_are_equal(seed, clip_eps):
    logps, old_logps, advantages = batch(seed, step=0.3)
    results = []
    for loss in (gspo_policy_loss, gspo_token_policy_loss):
        x = logps.clone().requires_grad_()
        losses = losses_of(loss, x, old_logps, advantages, GAPS, clip_eps=clip_eps)
        results.append((losses, torch.autograd.grad(sequence_mean(losses, GAPS), x)[0]))
    assert_close(results[0], results[1])


@every
@few
@given(seed=seeds)
def test_ratio_1_gives_minus_a_as_gradient(loss, seed):
    logps, _, advantages = batch(seed)
    x = logps.clone().requires_grad_()
    losses = losses_of(loss, x, logps, advantages, GAPS)
    (grad,) = torch.autograd.grad(masked_sum(losses, GAPS), x, retain_graph=True)
    assert_close(grad, torch.where(GAPS, -advantages, 0))
    (grad,) = torch.autograd.grad(sequence_mean(losses, GAPS, count=1), x)
    assert_close(grad, torch.where(GAPS, -advantages / GAPS.sum(-1, keepdim=True), 0))
    if loss in (gspo_policy_loss, gspo_token_policy_loss, gmpo_policy_loss):
        assert_close(losses, -advantages)


@every
@few
@given(seed=seeds, order=st.permutations(range(3)))
def test_rows_do_not_see_each_other(loss, seed, order):
    order, parts = list(order), [*batch(seed), GAPS]
    moved = losses_of(loss, *(x[order] for x in parts))
    assert_close(moved, losses_of(loss, *parts)[order])


@by_row
@few
@given(seed=seeds, order=st.permutations(range(4)))
def test_the_order_of_tokens_in_a_row_does_not_matter(loss, seed, order):
    order, parts = list(order), [*batch(seed), GAPS]
    moved = losses_of(loss, *(x[:, order] for x in parts))
    assert_close(moved, losses_of(loss, *parts)[:, order])


@every
@pytest.mark.parametrize("reduce, count", [(masked_mean, 7), (sequence_mean, 3)])
def test_a_split_batch_with_the_global_count_adds_up(loss, reduce, count):
    parts = [*batch(5), GAPS]
    whole = reduce(losses_of(loss, *parts), GAPS)
    halves = [[x[rows] for x in parts] for rows in (slice(0, 1), slice(1, 3))]
    assert_close(sum(reduce(losses_of(loss, *half), half[-1], count=count) for half in halves), whole)


@every
@pytest.mark.parametrize("dirty", [0, 1, 2])
@pytest.mark.parametrize("junk", [1e30, -1e30])
def test_finite_junk_in_padding_reaches_neither_an_averaged_loss_nor_its_gradient(loss, dirty, junk):
    results = []
    for filling in (0.0, junk):
        parts = batch(8, dtype=torch.float32)
        parts[dirty] = parts[dirty].masked_fill(~GAPS, filling)
        logps = parts[0].requires_grad_()
        total = sequence_mean(losses_of(loss, *parts, GAPS), GAPS)
        results.append((total, torch.autograd.grad(total, logps)[0]))
    for clean, dirtied in zip(*results, strict=True):
        assert torch.equal(clean, dirtied)
    assert not results[1][1][~GAPS].any() and results[1][1].any()


@pytest.mark.parametrize("loss", [gspo_policy_loss, gmpo_policy_loss, vespo_policy_loss])
@pytest.mark.parametrize("dirty", [0, 1])
def test_nan_log_probs_in_padding_stay_out_where_the_loss_takes_a_mask(loss, dirty):
    parts = batch(7)
    clean = sequence_mean(losses_of(loss, *parts, GAPS), GAPS)
    parts[dirty] = parts[dirty].masked_fill(~GAPS, torch.nan)
    logps = parts[0].requires_grad_()
    total = sequence_mean(losses_of(loss, *parts, GAPS), GAPS)
    (grad,) = torch.autograd.grad(total, logps)
    assert torch.equal(total, clean) and grad[GAPS].isfinite().all() and grad[GAPS].any() and not grad[~GAPS].any()


@every
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("logp, old_logp", [(-1e4, 0.0), (0.0, -1e4), (-1e4, -1e4), (0.0, 0.0)])
def test_extreme_log_probs_stay_finite_in_value_and_gradient(loss, logp, old_logp, advantage):
    logps = torch.full((1, 3), logp).requires_grad_()
    parts = torch.full((1, 3), old_logp), torch.full((1, 3), advantage), torch.ones(1, 3, dtype=torch.bool)
    losses = losses_of(loss, logps, *parts)
    assert losses.isfinite().all() and torch.autograd.grad(losses.sum(), logps)[0].isfinite().all()
    assert truncated_importance_weights(logps, sampler_logps=parts[0]).isfinite().all()


def test_gspo_token_keeps_the_digits_of_its_ratio_beside_an_unlikely_token():
    # ln s = (0.002 + 0 + 0 + 0) / 4 = 0.0005 in every column, for any log-prob of the token itself
    logps = row(-1.0, -1.0, -1.0, -1e4)
    old_logps, ones = logps - row(0.002, 0.0, 0.0, 0.0), torch.ones(1, 4)
    losses = gspo_token_policy_loss(logps, old_logps=old_logps, advantages=ones, mask=ones.bool(), clip_eps=0.1)
    assert_close(losses, torch.full((1, 4), -1.0005))


@every
def test_bf16_is_close_to_fp32(loss):
    parts = batch(11, dtype=torch.bfloat16)
    losses = losses_of(loss, *parts, GAPS)
    assert losses.dtype == torch.bfloat16
    assert_close(losses.float(), losses_of(loss, *(x.float() for x in parts), GAPS), rtol=0.05, atol=0.02)


@by_row
def test_a_row_without_a_true_column_gives_0_and_no_gradient(loss):
    logps, old_logps, advantages = batch(13)
    logps, nothing = logps.requires_grad_(), torch.zeros_like(GAPS)
    losses = losses_of(loss, logps, old_logps, advantages, nothing)
    total = masked_sum(losses, nothing)
    assert losses.isfinite().all() and total == 0 and not torch.autograd.grad(total, logps)[0].any()


@every
def test_inputs_are_not_written_to(loss):
    parts = [*batch(17), GAPS.clone()]
    before = [x.clone() for x in parts]
    losses_of(loss, *parts)
    assert all(torch.equal(x, y) for x, y in zip(parts, before, strict=True))


@every
@pytest.mark.parametrize("wrong", [1, 2])
def test_shapes_must_agree(loss, wrong):
    parts = [torch.zeros(2, 3) for _ in range(3)]
    parts[wrong] = parts[wrong][:, :1]
    if loss is not reinforce_policy_loss or wrong == 2:
        with pytest.raises(ValueError, match=r"_policy_loss: needed tensors of one shape, got .*\(2, 1\)"):
            losses_of(loss, *parts, torch.ones(2, 3, dtype=torch.bool))


@by_row
def test_a_mask_that_is_not_bool_or_of_another_shape_is_refused(loss):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"^{loss.__name__}: mask must be bool with True = counts, got torch.float32"):
        losses_of(loss, x, x, x, torch.ones(2, 3))
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: needed tensors of one shape, got {{'mask': \(2, 2\)"):
        losses_of(loss, x, x, x, torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("bad", [0, -1.0, math.nan])
@pytest.mark.parametrize(
    "loss, options, text",
    [
        (gspo_policy_loss, ["clip_eps", "clip_eps_high"], "clip_eps and clip_eps_high must be > 0"),
        (gspo_token_policy_loss, ["clip_eps", "clip_eps_high"], "clip_eps and clip_eps_high must be > 0"),
        (gmpo_policy_loss, ["clip_eps"], "gmpo_policy_loss: clip_eps must be > 0, got"),
        (cispo_policy_loss, ["clip_eps_high"], "cispo_policy_loss: clip_eps_high must be > 0, got"),
        (sapo_policy_loss, ["tau_pos", "tau_neg"], "sapo_policy_loss: tau_pos and tau_neg must be > 0, got"),
        (vespo_policy_loss, ["k_pos", "lambda_pos", "k_neg", "lambda_neg"], "vespo_policy_loss: needed k, lambda > 0"),
    ],
)
def test_constants_must_be_positive(loss, options, text, bad):
    x = torch.zeros(1, 2)
    for option in options:
        if loss is vespo_policy_loss and math.isnan(bad) and option != "k_pos":
            continue  # see the next test
        with pytest.raises(ValueError, match=text):
            losses_of(loss, x, x, x, x == 0, **{option: bad})


def test_vespo_refuses_a_constant_that_is_nan():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="^vespo_policy_loss: needed k, lambda > 0"):
        vespo_policy_loss(x, old_logps=x, advantages=x, mask=x == 0, lambda_neg=math.nan)


def test_truncated_weights_refuse_a_cap_below_1_and_other_shapes():
    x = torch.zeros(2, 3)
    for cap in (0.99, 0, -2.0, math.nan):
        with pytest.raises(ValueError, match=f"^truncated_importance_weights: cap must be at least 1, got {cap}$"):
            truncated_importance_weights(x, sampler_logps=x, cap=cap)
    with pytest.raises(ValueError, match="^truncated_importance_weights: needed tensors of one shape"):
        truncated_importance_weights(x, sampler_logps=x[:1])
