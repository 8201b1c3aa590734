"""The load-balancing loss: by hand, at its bounds, over masks; only the probabilities have a gradient."""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from minirlhf.losses import load_balancing_loss

LN3 = math.log(3)


def everything(logits):
    return torch.ones(logits.shape[1:3], dtype=torch.bool)


def test_by_hand():
    # ln 3 and 0: probabilities 3/4 and 1/4. Three tokens choose expert 0 and one expert 1: f = 3/4, 1/4.
    # P = (3 * 3/4 + 1/4) / 4 = 5/8 and 3/8. 2 (3/4 5/8 + 1/4 3/8) = 2 * 18/32 = 9/8
    logits = torch.tensor([[[[LN3, 0.0], [LN3, 0.0]], [[LN3, 0.0], [0.0, LN3]]]])
    assert_close(load_balancing_loss(logits, everything(logits), 1), torch.tensor(9 / 8))


def test_each_token_counts_for_every_expert_that_it_goes_to():
    # probabilities 1/2, 1/3, 1/6 and experts 0 and 1, then 1/6, 1/3, 1/2 and experts 1 and 2: f = 1/2, 1, 1/2 and
    # P = 1/3 each: 3 (2 / 3) = 2
    logits = torch.tensor([[[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]]]).log()
    assert_close(load_balancing_loss(logits, everything(logits), 2), torch.tensor(2.0))
    # twice the first: f = 1, 1, 0 and P = 1/2, 1/3, 1/6: 3 * 5/6
    logits = logits[:, :, :1].expand(1, 1, 2, 3)
    assert_close(load_balancing_loss(logits, everything(logits), 2), torch.tensor(2.5))


def test_layers_are_one_pool_of_tokens():
    # two layers: layer 0 always uses expert 0, layer 1 expert 1; together f = P = 1/2 each, balanced
    one, two = torch.tensor([100.0, 0.0]), torch.tensor([0.0, 100.0])
    logits = torch.stack((one.expand(2, 3, 2), two.expand(2, 3, 2)))
    assert_close(load_balancing_loss(logits, everything(logits), 1), torch.tensor(1.0))
    assert_close(load_balancing_loss(logits[:1], everything(logits), 1), torch.tensor(2.0))


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_it_lies_between_top_k_and_the_number_of_experts(top_k):
    even = torch.stack([torch.zeros(5).index_fill(0, torch.arange(e, e + top_k) % 5, 0.1) for e in range(5)])[
        None, None
    ]
    assert_close(load_balancing_loss(even, everything(even), top_k), torch.tensor(float(top_k)))
    same = torch.tensor([100.0] * top_k + [0.0] * (5 - top_k)).expand(1, 2, 3, 5)
    assert_close(load_balancing_loss(same, everything(same), top_k), torch.tensor(5.0))


def test_padding_reaches_neither_value_nor_gradient():
    logits = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    results = []
    for junk in (0.0, 7.0, math.nan):
        x = torch.where(mask[..., None], logits, junk).requires_grad_()
        loss = load_balancing_loss(x, mask, 2)
        loss.backward()
        results.append((loss.detach(), x.grad))
    packed = logits[:, mask][:, None]  # the three real tokens, one row
    assert_close(results[0][0], load_balancing_loss(packed, everything(packed), 2))
    for other in results[1:]:
        assert_close(other, results[0])
    assert not results[0][1][:, ~mask].any() and results[0][1][:, mask].all()


def test_only_the_probabilities_have_a_gradient_and_it_evens_out():
    # f = (1, 0), P = (sigmoid(x), 1 - sigmoid(x)) for one token of logits x, 0: loss 2 sigmoid(x), slope 2 * 3/4 * 1/4
    x = torch.tensor(LN3, requires_grad=True)
    logits = torch.stack((x, torch.zeros(()))).view(1, 1, 1, 2)
    loss = load_balancing_loss(logits, everything(logits), 1)
    loss.backward()
    assert_close(loss, torch.tensor(1.5))
    assert_close(x.grad, torch.tensor(0.375))


def test_an_empty_mask_gives_0_without_gradient():
    logits = torch.randn(1, 2, 3, 4, requires_grad=True)
    loss = load_balancing_loss(logits, torch.zeros(2, 3, dtype=torch.bool), 2)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_half_precision_is_summed_up_in_full():
    logits = torch.randn(1, 8, 512, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = load_balancing_loss(logits, everything(logits), 2)
    assert found.dtype == torch.float32
    assert_close(found, load_balancing_loss(logits.double(), everything(logits), 2).float())


@pytest.mark.parametrize("top_k", [0, 5])
def test_top_k_outside_the_experts_is_refused(top_k):
    logits = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f"^load_balancing_loss: top_k must be from 1 to the 4 experts, got {top_k}$"):
        load_balancing_loss(logits, everything(logits), top_k)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(2, 3), "load_balancing_loss: mask must be bool with True = counts, got torch.float32"),
        (torch.ones(3, 2, dtype=torch.bool), "load_balancing_loss: needed tensors of one shape, got"),
    ],
)
def test_masks_are_checked(mask, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        load_balancing_loss(torch.zeros(1, 2, 3, 4), mask, 2)
