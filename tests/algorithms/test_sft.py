"""SFT: the loss is the mean over all response tokens of the batch, in any micro-batches."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.losses import token_logps


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def test_loss_is_the_mean_nll_of_response_tokens_eos_included(batch):
    trainer, total, n = tiny.sft(), 0.0, 0
    for draw in batch:  # one row at a time, no padding, from the full logits
        ids = torch.tensor([draw.row.prompt + draw.row.responses[0]])
        logps = token_logps(trainer.models["policy"].transformer(ids), ids)[0, len(draw.row.prompt) :]
        total, n = total - logps.sum().item(), n + len(logps)
    assert n == sum(len(draw.row.responses[0]) for draw in batch) and draw.row.responses[0][-1] == 2
    assert trainer.step(batch)["loss"] == pytest.approx(total / n, rel=1e-6)


def test_evaluation_is_the_same_mean_and_changes_nothing(batch):
    trainer = tiny.sft()
    before = tiny.weights(trainer)
    loss = trainer.evaluate([draw.row for draw in batch])["loss"]
    assert_close(tiny.weights(trainer), before, rtol=0, atol=0)
    assert loss == pytest.approx(trainer.step(batch)["loss"], rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eight_microbatches_of_one_row_are_one_of_eight(batch, dtype, tolerance):
    joined, split = (tiny.gradients(tiny.sft(dtype, microbatch_tokens=n), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=tolerance, atol=tolerance)
    assert split[1] == pytest.approx(joined[1], rel=1e-6)


def test_one_allowed_token_makes_each_row_a_microbatch(batch):
    trainer, sizes = tiny.sft(microbatch_tokens=1), []
    trainer.policy.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    trainer.step(batch)
    assert sizes == [1] * 8


def test_the_padding_id_changes_neither_gradient_nor_metric(batch):
    clean, junk = tiny.sft(microbatch_tokens=10_000), tiny.sft(microbatch_tokens=10_000)
    junk.tokenizer.pad_id = 17
    for a, b in zip(tiny.gradients(clean, batch), tiny.gradients(junk, batch), strict=True):
        assert_close(b, a, rtol=0, atol=0)


def test_the_loss_falls_on_rows_that_come_again():
    trainer = tiny.sft(torch.float32, updates=40, lr=2e-2)
    log = tiny.train(trainer, tiny.batches(8, 40, n=8))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_state_and_weights_continue_identically():
    batches = tiny.batches(8, 6)
    whole, first, second = (tiny.sft(torch.float32, updates=6) for _ in range(3))
    log = tiny.train(whole, batches)
    for k in range(3):
        first.step(batches[k])
    second.models["policy"].load_state_dict(first.models["policy"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in range(3, 6)] == log[3:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)
