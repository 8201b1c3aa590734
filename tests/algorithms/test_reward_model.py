"""The reward model: Bradley-Terry with margin and centring, in any micro-batches."""

import math
import re

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.data.batches import Draw
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def score(trainer, row, side):
    """One text at a time, no padding."""
    ids = torch.tensor([row.prompt + row.responses[side]])
    return trainer.models["reward"](ids, torch.ones_like(ids, dtype=torch.bool)).item()


def test_step_reports_bradley_terry_with_margin_and_centring(batch):
    # mean of -log sigmoid(c - r - margin) + 0.5 (c + r)^2
    trainer = tiny.reward(center_coef=0.5)
    pairs = [(score(trainer, d.row, 0), score(trainer, d.row, 1), d.row.source["margin"]) for d in batch]
    losses = [math.log1p(math.exp(-(c - r - m))) + 0.5 * (c + r) ** 2 for c, r, m in pairs]
    metrics = trainer.step(batch)
    assert metrics["loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum(c > r for c, r, _ in pairs) / 8)
    assert metrics["margin"] == pytest.approx(sum(c - r for c, r, _ in pairs) / 8, rel=1e-5)


def test_evaluation_has_neither_margin_nor_centring(batch):
    trainer, rows = tiny.reward(center_coef=0.5), [draw.row for draw in batch]
    pairs = [(score(trainer, row, 0), score(trainer, row, 1)) for row in rows]
    measured = trainer.evaluate(rows)
    assert measured["loss"] == pytest.approx(sum(math.log1p(math.exp(r - c)) for c, r in pairs) / 8, rel=1e-6)
    assert measured["accuracy"] == sum(c > r for c, r in pairs) / 8


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eight_microbatches_of_one_pair_are_one_of_eight(batch, dtype, tolerance):
    joined, split = (tiny.gradients(tiny.reward(dtype, microbatch_tokens=n), batch) for n in (10_000, 1))
    assert_close(split[0], joined[0], rtol=tolerance, atol=tolerance)
    assert split[1] == pytest.approx(joined[1], rel=1e-5)


def test_the_padding_id_changes_neither_gradient_nor_metric(batch):
    clean, junk = tiny.reward(microbatch_tokens=10_000), tiny.reward(microbatch_tokens=10_000)
    junk.tokenizer.pad_id = 17
    for a, b in zip(tiny.gradients(clean, batch), tiny.gradients(junk, batch), strict=True):
        assert_close(b, a, rtol=0, atol=0)


def test_centring_pulls_the_scores_to_zero():
    def distance(center_coef):
        trainer = tiny.reward(torch.float32, updates=30, center_coef=center_coef, lr=2e-2)
        tiny.train(trainer, tiny.batches(8, 30, n=8))
        return sum(abs(score(trainer, row, 0) + score(trainer, row, 1)) for row in tiny.rows(8))

    assert distance(0.1) < 0.5 * distance(0.0)


def test_it_learns_pairs_that_come_again():
    trainer = tiny.reward(torch.float32, updates=80, lr=2e-2)
    log = tiny.train(trainer, tiny.batches(8, 80, n=16))
    assert trainer.evaluate(tiny.rows(16))["accuracy"] > 0.9 and log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_state_and_weights_continue_identically():
    batches = tiny.batches(8, 6)
    whole, first, second = (tiny.reward(torch.float32, updates=6) for _ in range(3))
    log = tiny.train(whole, batches)
    for k in range(3):
        first.step(batches[k])
    second.models["reward"].load_state_dict(first.models["reward"].state_dict())
    second.load_state_dict(first.state_dict())
    assert [second.step(batches[k]) for k in range(3, 6)] == log[3:]
    assert_close(tiny.weights(second), tiny.weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("margin", ["0.5", "high", [1], math.nan, math.inf, 1e39, 1e30])
def test_a_margin_that_is_no_usable_number_is_refused_with_its_row(margin):
    row = tiny.rows(1)[0]
    for place, name in (({"line": 7}, "line 7"), ({}, repr(row.source["prompt"]))):
        bad = EncodedRow({**row.source, **place, "margin": margin}, row.prompt, row.responses)
        text = f"{name}: margin must be a number of at most 1e+15 in size, got {margin!r}"
        with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
            tiny.reward().step([Draw(bad, 0, 0)])


def test_a_margin_of_null_is_no_margin():
    row = tiny.rows(1)[0]
    losses = []
    for source in ({"margin": None}, {"margin": 0}, {}):
        rest = {key: value for key, value in row.source.items() if key != "margin"}
        losses.append(tiny.reward().step([Draw(EncodedRow(rest | source, row.prompt, row.responses), 0, 0)])["loss"])
    assert losses[0] == losses[1] == losses[2]
