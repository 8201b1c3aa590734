"""The best checkpoint by a metric of the user, early stopping, and the best model as the final model."""

import json
import math
import threading
from pathlib import Path

import pytest
import tiny
import torch

from minirlhf.errors import InputError
from minirlhf.manifest import is_complete
from minirlhf.model import Policy
from minirlhf.pretrained import load_policy
from minirlhf.training import Run, RunConfig, RunSettings
from minirlhf.training.best import goal
from minirlhf.training.runs import better

LOSSES = [5.0, 3.0, 4.0, 2.0, 4.0, 4.0]  # of the six steps


class Counter:
    """A trainer whose model counts its steps in a weight, and whose loss follows LOSSES."""

    headline, best, samples = ("loss",), ("eval/goodness", "max"), []

    def __init__(self):
        self.models = {"policy": Policy(tiny.transformer(dtype=torch.float32))}
        self.weight, self.steps = self.models["policy"].transformer.model.norm.weight, 0
        self.weight.data.fill_(0)

    def step(self, batch):
        self.steps += 1
        self.weight.data += 1
        return {"loss": 1.0, "grad_norm": 1.0}

    def evaluate(self):
        loss = LOSSES[max(0, self.steps - 1)]
        return {"goodness": float(self.steps), "chat/loss": loss, "chat/score": -loss}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def go(folder, stop=99, evaluate=True, **config):
    trainer = Counter()
    config = RunConfig(output=str(folder), **{"eval_every": 1, "save_every": 0, **config})
    run = Run(config, trainer, [[k] for k in range(6)], evaluate=trainer.evaluate if evaluate else None)
    for batch in run:
        if run.step == stop:
            raise KeyboardInterrupt
        run.record(trainer.step(batch))
    return run, trainer


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ({}, 6),  # the trainer's own metric rises
        ({"best_metric": "eval/chat/loss"}, 4),  # a loss: lower is better
        ({"best_metric": "eval/chat/score"}, 4),
        ({"best_metric": "eval/chat/loss", "best_mode": "max"}, 1),
    ],
)
def test_the_best_checkpoint_is_the_best_by_the_metric(tmp_path, settings, best):
    run, _ = go(tmp_path, keep=1, **settings)
    assert run._best["step"] == best
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted({f"step-{best}", "step-6"})


@pytest.mark.parametrize(("patience", "steps"), [(1, 3), (2, 6), (3, 6), (0, 6)])
def test_a_run_ends_after_so_many_evaluations_without_a_new_best(tmp_path, patience, steps):
    # losses 5 3 4 2 4 4: step 3 is the first without a new best, steps 5 and 6 are two in a row
    run, trainer = go(tmp_path, best_metric="eval/chat/loss", patience=patience)
    assert run.step == trainer.steps == steps
    assert ("stays the best" in (tmp_path / "log.txt").read_text()) == (patience in (1, 2))
    again, trainer = go(tmp_path, best_metric="eval/chat/loss", patience=patience, resume=True)
    assert again.step == steps and trainer.steps == steps  # a finished run stays finished


def test_an_evaluation_of_nan_is_neither_the_best_nor_one_without_a_new_best(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LOSSES", [math.nan, 3.0, math.nan, 4.0, 2.0, 3.0])
    run, _ = go(tmp_path, best_metric="eval/chat/loss", patience=1)
    assert run.step == 4 and run._best == {"step": 2, "value": 3.0, "since": 1}


def test_patience_counts_on_after_a_resume(tmp_path):
    settings = {"best_metric": "eval/chat/loss", "patience": 2, "save_every": 1}
    whole, _ = go(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop=5, **settings)  # after the first of the two evaluations
    cut, _ = go(tmp_path / "cut", resume=True, **settings)
    assert cut.step == whole.step == 6 and cut._best == whole._best == {"step": 4, "value": 2.0, "since": 2}
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("final", "weight"), [("last", 6.0), ("best", 4.0)])
def test_the_final_model_is_the_last_or_the_best(tmp_path, final, weight):
    _, trainer = go(tmp_path, best_metric="eval/chat/loss", final=final)
    assert set(load_policy(tmp_path / "model").transformer.model.norm.weight.tolist()) == {weight}
    assert set(trainer.weight.tolist()) == {weight}  # later evaluations measure the final model


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path):
    text = "needed a metric of evaluations, got eval/chat/los; the nearest is eval/chat/loss; they have eval/goodness, "
    with pytest.raises(InputError, match=f"^run.best_metric: {text}"):
        go(tmp_path / "a", best_metric="eval/chat/los")
    assert (tmp_path / "a/metrics.jsonl").read_text() == ""
    with pytest.raises(InputError, match="^run.best_metric: this run makes no evaluations"):
        go(tmp_path / "b", best_metric="eval/loss", evaluate=False)
    with pytest.raises(InputError, match="^run.patience: this run makes no evaluations"):
        go(tmp_path / "c", patience=1, evaluate=False)
    with pytest.raises(InputError, match="^RunSettings: best_mode needs best_metric"):
        RunSettings(best_mode="min")
    with pytest.raises(InputError, match="^RunSettings: patience must be at least 0"):
        RunSettings(patience=-1)


@pytest.mark.parametrize("settings", [{"final": "best"}, {"patience": 2}])
def test_an_own_metric_that_no_evaluation_has_is_refused_if_the_run_needs_its_best_step(
    tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(Counter, "best", ("eval/gold_reward", "max"))
    text = "the best step is that of eval/gold_reward, which these evaluations do not measure; set run.best_metric"
    with pytest.raises(InputError, match=f"^run.{next(iter(settings))}: {text}"):
        go(tmp_path / "a", **settings)
    run, _ = go(tmp_path / "b", best_metric="eval/goodness", **settings)
    assert run.step == 6
    assert go(tmp_path / "c")[0]._best == {}  # other runs need no best step


def test_an_evaluation_that_is_not_a_number_is_never_the_best(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LOSSES", [math.nan, 3.0, math.nan, 2.0, math.nan, 4.0])
    run, _ = go(tmp_path, best_metric="eval/chat/loss")
    assert run._best["step"] == 4


@pytest.mark.parametrize(
    "metric", ["eval/loss", "eval/kl", "eval/chat/perplexity", "eval/accuracy", "eval/gold_reward"]
)
def test_a_run_and_the_list_of_runs_agree_on_the_better_end(metric):
    low = metric in ("eval/loss", "eval/kl", "eval/chat/perplexity")
    found = goal(RunSettings(best_metric=metric), {metric: 1.0})
    assert found == (metric, "min" if low else "max") == (metric, better(metric))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("keep", [1, 2])
def test_after_every_change_of_a_folder_the_newest_checkpoint_has_its_best_checkpoint_beside_it(
    tmp_path, monkeypatch, keep, asynchronous
):
    """So a kill at any instant loses no best checkpoint, also while a thread writes one and deletes others."""
    seen = []

    def look(*_):
        complete = [path for path in (tmp_path / "checkpoints").glob("step-*") if is_complete(path)]
        if complete:
            newest = max(complete)
            best = json.loads((newest / "state.json").read_text())["best"]
            assert tmp_path / f"checkpoints/step-{best['step']}" in complete
            seen.append((newest.name, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(Path, "rename", lambda self, target, rename=Path.rename: look(rename(self, target)))
    go(tmp_path, save_every=1, keep=keep, best_metric="eval/chat/loss", async_save=asynchronous)
    assert {name for name, _ in seen} == {f"step-{n}" for n in range(1, 7)}
    assert (False in {main for _, main in seen}) == asynchronous
    left = {"step-4", "step-6"} | ({"step-5"} if keep == 2 else set())  # the loss is lowest after step 4
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == left
