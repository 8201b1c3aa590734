"""Cross-entropy of given tokens."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.losses import cross_entropy, masked_mean, token_logps


def test_by_hand():
    # -ln(1/2) = 0.693147, -ln(1/4) = 1.386294, -ln 1 = 0
    assert_close(cross_entropy(torch.tensor([[0.5, 0.25, 1.0]]).log()), torch.tensor([[0.693147, 1.386294, 0.0]]))


def test_average_over_the_response_equals_torchs_shifted_cross_entropy():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    input_ids = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 1, 0, 0]])
    mask = torch.tensor([[False, False, True, True, False], [False, True, True, False, False]])
    labels = input_ids.masked_fill(~mask, -100)
    want = F.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
    assert_close(masked_mean(cross_entropy(token_logps(logits, input_ids)), mask), want)


def test_gradient():
    assert torch.autograd.gradcheck(cross_entropy, torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
