"""Bradley-Terry, its margin and the centring term; right and wrong."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import bradley_terry_loss, correctness_loss, reward_centering_loss

LN3 = 1.0986123
few = settings(max_examples=50)
scores = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=5).map(
    lambda pairs: torch.tensor(pairs, dtype=torch.float64).unbind(-1)
)


def test_bradley_terry_by_hand():
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4: -ln of them is 0.287682, 0.693147, 1.386294
    chosen, rejected = torch.tensor([[LN3, 5.0, 1.0], [0.0, 5.0, 1 + LN3]])
    losses = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)
    assert_close(losses, torch.tensor([0.287682, 0.693147, 1.386294]))


def test_margin_is_taken_off_the_difference():
    # 2 - 1 - 1 = 0: ln 2.   3 - 0 - (3 - ln 3) = ln 3: -ln(3/4)
    chosen, rejected, margin = torch.tensor([[2.0, 3.0], [1.0, 0.0], [1.0, 3 - LN3]])
    losses = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected, margin=margin)
    assert_close(losses, torch.tensor([0.693147, 0.287682]))


def test_centering_by_hand():
    # (2 + 1)^2 = 9, (1 - 1)^2 = 0, (-3 + 1)^2 = 4
    chosen, rejected = torch.tensor([[2.0, 1.0, -3.0], [1.0, -1.0, 1.0]])
    losses = reward_centering_loss(chosen_scores=chosen, rejected_scores=rejected)
    assert_close(losses, torch.tensor([9.0, 0.0, 4.0]))


def test_golden(golden):
    reward = golden["reward"]
    pair = {"chosen_scores": reward["chosen"], "rejected_scores": reward["rejected"]}
    assert bradley_terry_loss(**pair).mean().item() == pytest.approx(reward["bt"])
    assert bradley_terry_loss(**pair, margin=reward["margin"]).mean().item() == pytest.approx(reward["bt_margin"])
    assert reward_centering_loss(**pair).mean().item() == pytest.approx(reward["center_term_coef1"])


@few
@given(scores, st.floats(-100, 100))
def test_bradley_terry_ignores_a_constant_and_centering_does_not(pair, constant):
    chosen, rejected = pair
    losses = bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)
    moved = bradley_terry_loss(chosen_scores=chosen + constant, rejected_scores=rejected + constant)
    assert_close(moved, losses)
    centering = reward_centering_loss(chosen_scores=chosen + constant, rejected_scores=rejected + constant)
    assert_close(centering, (chosen + rejected + 2 * constant).square())


@few
@given(scores)
def test_swapping_the_pair_changes_the_loss_by_the_difference(pair):
    # -log s(d) + log s(-d) = -d
    a, b = pair
    there = bradley_terry_loss(chosen_scores=a, rejected_scores=b)
    back = bradley_terry_loss(chosen_scores=b, rejected_scores=a)
    assert_close(there - back, b - a)
    assert (there >= 0).all()


@few
@given(scores)
def test_pairs_do_not_see_each_other(pair):
    chosen, rejected = pair
    order = (chosen - rejected).argsort()
    for loss in (bradley_terry_loss, reward_centering_loss):
        losses = loss(chosen_scores=chosen, rejected_scores=rejected)
        assert_close(loss(chosen_scores=chosen[order], rejected_scores=rejected[order]), losses[order])


@pytest.mark.parametrize("chosen, rejected, want", [(-1e4, 0.0, 1e4), (0.0, -1e4, 0.0), (1e4, -1e4, 0.0)])
def test_extreme_scores_stay_finite_in_value_and_gradient(chosen, rejected, want):
    pair = [torch.tensor([x], requires_grad=True) for x in (chosen, rejected)]
    loss = bradley_terry_loss(chosen_scores=pair[0], rejected_scores=pair[1])
    loss.backward()
    assert_close(loss.detach(), torch.tensor([want]))
    assert all(x.grad.isfinite().all() for x in pair)


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    pair = tuple(torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    margin = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def loss(chosen, rejected, margin=None):
        return bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected, margin=margin)

    assert torch.autograd.gradcheck(loss, pair) and torch.autograd.gradcheck(loss, (*pair, margin))
    assert torch.autograd.gradcheck(lambda a, b: reward_centering_loss(chosen_scores=a, rejected_scores=b), pair)


def test_shapes_must_agree():
    two, three = torch.zeros(2), torch.zeros(3)
    for loss in (bradley_terry_loss, reward_centering_loss):
        shapes = r"\{'chosen_scores': \(2,\), 'rejected_scores': \(3,\)\}"
        with pytest.raises(ValueError, match=f"^{loss.__name__}: needed tensors of one shape, got {shapes}"):
            loss(chosen_scores=two, rejected_scores=three)
    with pytest.raises(ValueError, match=r"^bradley_terry_loss: .*\{'chosen_scores': \(2,\), 'margin': \(2, 1\)\}"):
        bradley_terry_loss(chosen_scores=two, rejected_scores=two, margin=torch.zeros(2, 1))


def test_correctness_by_hand():
    # sigmoid(ln 3) = 3/4. right: ln 4/3 at ln 3, ln 2 at 0, ln 4 at -ln 3; wrong: the same in reverse order
    scores = torch.tensor([[LN3, 0.0, -LN3], [LN3, 0.0, -LN3]])
    labels = torch.tensor([[True] * 3, [False] * 3])
    want = torch.tensor([[0.287682, 0.693147, 1.386294], [1.386294, 0.693147, 0.287682]])
    assert_close(correctness_loss(scores, labels=labels), want)
    assert_close(correctness_loss(scores[0], labels=labels[0]), want[0])


def test_correctness_gradient_is_the_chance_to_be_right_minus_the_label():
    # sigmoid(ln 3) - 1 = -1/4, sigmoid(ln 3) - 0 = 3/4, and 1/2 at 0
    scores, labels = torch.tensor([LN3, LN3, 0.0, 0.0], requires_grad=True), torch.tensor([True, False, True, False])
    correctness_loss(scores, labels=labels).sum().backward()
    assert_close(scores.grad, torch.tensor([-0.25, 0.75, -0.5, 0.5]))
    scores = scores.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: correctness_loss(x, labels=labels), scores)


@few
@given(scores)
def test_correctness_is_a_pair_with_a_score_of_0(pair):
    a, _ = pair
    zero, right = torch.zeros_like(a), torch.ones_like(a, dtype=torch.bool)
    assert_close(correctness_loss(a, labels=right), bradley_terry_loss(chosen_scores=a, rejected_scores=zero))
    assert_close(correctness_loss(a, labels=~right), bradley_terry_loss(chosen_scores=zero, rejected_scores=a))
    assert_close(correctness_loss(-a, labels=~right), correctness_loss(a, labels=right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_correctness_of_extreme_scores_stays_finite(dtype):
    # right: 1e4, 0; wrong: 0, 1e4. bf16 holds 1e4 as 9984
    scores = torch.tensor([-1e4, 1e4, -1e4, 1e4], dtype=dtype, requires_grad=True)
    losses = correctness_loss(scores, labels=torch.tensor([True, True, False, False]))
    losses.sum().backward()
    large = scores.detach().abs()[0].item()
    assert_close(losses.detach(), torch.tensor([large, 0.0, 0.0, large], dtype=dtype))
    assert scores.grad.tolist() == [-1.0, 0.0, 0.0, 1.0]


def test_correctness_needs_bool_labels_of_the_scores_shape():
    scores = torch.zeros(2)
    with pytest.raises(ValueError, match="^correctness_loss: mask must be bool .*int64"):
        correctness_loss(scores, labels=torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^correctness_loss: .*\(2, 1\).*'scores': \(2,\)"):
        correctness_loss(scores, labels=torch.ones(2, 1, dtype=torch.bool))
