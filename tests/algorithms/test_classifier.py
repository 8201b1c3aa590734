"""Reward models from labelled texts: the loss by hand, the counts, and what the trained scores mean."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from minirlhf.algorithms import ClassifierTrainer, RewardConfig
from minirlhf.data import Batches, encode_rows
from minirlhf.model import RewardModel
from minirlhf.rewards import RewardModelScorer
from minirlhf.training.vocabulary import METRICS


def classifier(dtype=torch.float64, updates=3, **settings):
    config = RewardConfig(**{"batch_size": 8, "microbatch_tokens": 60, "lr": 1e-2, **settings})
    torch.manual_seed(1)
    return ClassifierTrainer(RewardModel(tiny.transformer(dtype=dtype)), tiny.tokenizer(), config, updates)


def labelled(texts):
    """Texts with the prompt "ab", as ids. A text without z is good."""
    rows = [{"prompt": "ab", "response": text, "label": "z" not in text} for text in texts]
    return encode_rows(tiny.tokenizer(), rows, ("response",), context=64).rows


def batch():
    rows = labelled(["cde", "cz", "zzzz", "efghij", "k", "lmz", "no", "pqzrs"])
    return Batches(rows, batch_size=8, steps=1, seed=0, stream="labels")[0]


def test_the_loss_is_the_cross_entropy_of_the_score_at_the_end_of_each_text():
    trainer, losses, right = classifier(), [], []
    model = trainer.models["reward"]
    for draw in batch():  # unpadded, one row at a time
        ids = torch.tensor([[*draw.row.prompt, *draw.row.responses[0]]])
        assert ids[0, -1] == trainer.tokenizer.eos_id
        score, label = model(ids, torch.ones_like(ids, dtype=torch.bool))[0], draw.row.source["label"]
        losses.append(-logsigmoid(score if label else -score))
        right.append((score.item() > 0) == label)
    assert 0 < sum(right) < len(right) == 8
    loss = torch.stack(losses).mean()
    named = trainer.optimizer.parameters
    expected = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    expected = {name: grad for name, grad in zip(named, expected, strict=True) if grad is not None}
    for tokens in (1, 60, 10_000):  # micro-batches change nothing
        found, metrics = tiny.gradients(classifier(microbatch_tokens=tokens), batch())
        assert_close(found, expected, rtol=1e-7, atol=1e-9)
        assert metrics["loss"] == pytest.approx(loss.item())
        assert metrics["accuracy"] == pytest.approx(sum(right) / 8)
        measured = classifier(microbatch_tokens=tokens).evaluate([draw.row for draw in batch()])
        assert measured == pytest.approx({name: metrics[name] for name in ("accuracy", "loss")})


def test_the_scores_become_the_log_odds_of_the_labels():
    """Texts "c" are good in three of four rows, texts "d" in one of four: the scores go to log 3 and -log 3."""
    rows = labelled(["c"] * 4 + ["d"] * 4)
    good = [True, True, True, False, True, False, False, False]
    rows = [replace(row, source={**row.source, "label": label}) for row, label in zip(rows, good, strict=True)]
    trainer = classifier(torch.float32, 60, lr=2e-2, weight_decay=0.0, microbatch_tokens=10_000)
    log = tiny.train(trainer, Batches(rows, batch_size=8, steps=60, seed=0, stream="labels"))
    score = RewardModelScorer(trainer.models["reward"], trainer.tokenizer)
    assert score(["ab", "ab"], ["c", "d"], [{}, {}]) == pytest.approx([math.log(3), -math.log(3)], abs=0.05)
    assert log[-1]["loss"] == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4), abs=1e-3)
    assert log[0].keys() <= METRICS.keys() and trainer.evaluate(rows)["accuracy"] == 0.75


def test_an_evaluation_without_texts_gives_no_numbers():
    assert classifier().evaluate([]) == {}
