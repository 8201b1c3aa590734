"""The rows of a stage whose reference log-probs are computed before its first step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from minirlhf.data.batches import Batches
from minirlhf.jobs.reference import drawn_rows, precompute


def stage_of(folder, trainer, steps):
    rows = tiny.rows(24)
    batches = lambda rows: Batches(rows, batch_size=8, steps=steps, seed=0, stream="tiny")  # noqa: E731
    job = SimpleNamespace(folder=folder, task=SimpleNamespace(validation={}))
    return SimpleNamespace(rows=rows[:20], held_out=rows[20:], batches=batches, job=job, section="dpo")


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_the_rows_of_the_batches_are_computed_and_no_others(tmp_path, monkeypatch, steps):
    monkeypatch.delenv("MINIRLHF_CACHE", raising=False)
    trainer = tiny.dpo()
    stage = stage_of(tmp_path, trainer, steps)
    batches = stage.batches(stage.rows)
    assert len(drawn_rows(stage)) == min(8 * steps, 20)
    precompute(stage, trainer)
    assert len(trainer.ref_policy.found.ends) == 2 * (min(8 * steps, 20) + 4)
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "ref_logps"]
    for k in range(min(steps, 3)):
        trainer.step(batches[k])
    assert trainer.evaluate(stage.held_out)["loss"] > 0


def test_the_environment_names_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIRLHF_CACHE", str(tmp_path / "cache"))
    trainer = tiny.unpaired()
    precompute(stage_of(tmp_path / "job", trainer, 2), trainer)
    assert [Path(path).parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "cache"]
