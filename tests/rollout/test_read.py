"""The reader of log-probs, values and sums over rows: its result does not depend on the micro-batches."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.rollout import read

IDS = torch.arange(1, 13).view(3, 4)
MASK = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]])
LENGTHS = [2, 4, 1]


def test_numbers_per_token_come_back_in_the_order_of_the_rows():
    # rows of 4, 2 and 1 tokens; at most 4 tokens a micro-batch: row 1 alone, then rows 0 and 2, cut to 2 columns
    calls = []

    def double(ids, mask):
        calls.append((ids.tolist(), mask.tolist()))
        return 2 * ids

    result = read(double, (IDS, MASK), LENGTHS, max_tokens=4)
    assert calls == [([[5, 6, 7, 8]], [[True] * 4]), ([[1, 2], [9, 10]], [[True, True], [True, False]])]
    assert result.tolist() == [[2, 4, 0, 0], [10, 12, 14, 16], [18, 20, 0, 0]]


def test_numbers_per_row_come_back_in_the_order_of_the_rows():
    totals = read(lambda ids, mask: torch.where(mask, ids, 0).sum(-1), (IDS, MASK), LENGTHS, max_tokens=1)
    assert totals.tolist() == [1 + 2, 5 + 6 + 7 + 8, 9]


def test_nothing_carries_gradient_and_the_type_stays():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    result = read(lambda ids: ids * weight, (IDS,), LENGTHS, max_tokens=100)
    assert not result.requires_grad and result.dtype == torch.float64


@pytest.mark.parametrize("max_tokens", [1, 9, 10_000])
def test_micro_batches_change_no_log_prob(loud, max_tokens):
    policy = loud(Policy(Transformer(ModelConfig(vocab_size=20)), value_head=True)).double()
    whole = policy(IDS, MASK)
    logps = read(lambda ids, mask: policy(ids, mask).logps, (IDS, MASK), LENGTHS, max_tokens)
    assert_close(logps[MASK], whole.logps[MASK].detach(), rtol=1e-9, atol=1e-12)
    values = read(policy.read_values, (IDS, MASK), LENGTHS, max_tokens)
    assert_close(values[MASK], whole.values[MASK].detach(), rtol=1e-9, atol=1e-12)
