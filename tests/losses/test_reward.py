"""Bradley-Terry, its margin and the centring term."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.losses import bradley_terry_loss, reward_centering_loss

LN3 = 1.0986123
few = settings(deadline=None, derandomize=True, max_examples=50)
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
