"""The reference's log-probs, computed once: the same training, and a file on disk that is never out of date."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import DPOConfig
from minirlhf.algorithms.ref_logps import precompute_ref_logps
from minirlhf.data.batches import Batches, pad_rows
from minirlhf.errors import InputError
from minirlhf.jobs.reference import drawn_rows, precompute
from minirlhf.model import Policy

ROWS = tiny.rows(24)
KINDS = {
    "dpo": lambda **more: tiny.dpo(length_alpha=0.4, nll_coef=0.3, weighting=True, **more),
    "kto": tiny.unpaired,
    "bco": lambda **more: tiny.unpaired(loss="bco", prompt_weighting=True, **more),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def forwards(monkeypatch):
    """Policies whose forward was called."""
    called, plain = [], Policy.forward
    monkeypatch.setattr(
        Policy, "forward", lambda self, *args, **more: called.append(self) or plain(self, *args, **more)
    )
    return called


def precomputed(folder, kind="dpo", rows=ROWS, trainer=None, **settings):
    trainer = trainer or KINDS[kind](**settings)
    precompute_ref_logps(trainer, [rows[:10], rows[10:]], folder)
    return trainer


@kinds
def test_the_training_is_the_same_and_needs_no_reference(tmp_path, kind, forwards):
    plain, trainer = KINDS[kind](), KINDS[kind]()
    gone = weakref.ref(trainer.ref_policy)
    precomputed(tmp_path, trainer=trainer)
    if kind != "bco":  # its classifier of prompts keeps the reference
        gc.collect()
        forwards.clear()
        assert gone() is None
    for subject in (plain, trainer):
        subject.log = tiny.train(subject, tiny.batches(8)), subject.evaluate(ROWS[3:])
    assert_close(tiny.weights(trainer), tiny.weights(plain), rtol=1e-9, atol=1e-9)
    for found, expected in zip([*trainer.log[0], trainer.log[1]], [*plain.log[0], plain.log[1]], strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_batches_of_one_shape_give_the_same_bits(tmp_path):
    trainer = tiny.dpo(torch.float32, microbatch_tokens=10_000)
    batch = pad_rows(ROWS, (0, 1), 0, trainer.device)
    inputs = batch.input_ids, batch.attention_mask
    options = {"wanted": batch.completion_mask, "entropy": False}
    expected = trainer.ref_policy(*inputs, **options).logps
    precompute_ref_logps(trainer, [ROWS], tmp_path)
    found = trainer.ref_policy(*inputs, **options).logps
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_second_run_reads_the_file(tmp_path, kind, forwards, capsys):
    first = precomputed(tmp_path, kind)
    assert "sequences are kept in" in capsys.readouterr().out and forwards
    forwards.clear()
    second = precomputed(tmp_path, kind)
    assert not forwards and capsys.readouterr().out == "" and len([*tmp_path.iterdir()]) == 1
    assert tiny.train(second, tiny.batches(8)) == tiny.train(first, tiny.batches(8))


def other_weights():
    trainer = tiny.dpo()
    with torch.no_grad():
        trainer.ref_policy.transformer.model.norm.weight[0] += 1e-9
    return trainer


def other_config():
    trainer = tiny.dpo()
    object.__setattr__(trainer.ref_policy.transformer.config, "rope_theta", 9999.0)
    return trainer


def with_gap(row):
    return replace(row, learned=([False] + [True] * (len(row.responses[0]) - 1), row.mask(1)))


CHANGES = {
    "weights": {"trainer": other_weights},
    "config": {"trainer": other_config},
    "dtype": {"trainer": lambda: tiny.dpo(torch.float32)},
    "loss that reads one response": {"trainer": lambda: tiny.unpaired(loss="bco")},
    "a row less": {"rows": ROWS[:-1]},
    "order": {"rows": ROWS[::-1]},
    "a masked token": {"rows": [with_gap(ROWS[0]), *ROWS[1:]]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_that_decides_the_numbers_is_another_file(tmp_path, change):
    options = {"trainer": tiny.dpo, "rows": ROWS}
    for changes in ({}, CHANGES[change]):
        chosen = options | changes
        precompute_ref_logps(chosen["trainer"](), [chosen["rows"]], tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_a_change_of_the_code_or_of_the_precision_is_another_file(tmp_path, monkeypatch):
    trainer = lambda: tiny.dpo(torch.float32)  # noqa: E731
    precomputed(tmp_path, trainer=trainer())
    with torch.autocast("cpu", torch.bfloat16):
        precomputed(tmp_path, trainer=trainer())
    monkeypatch.setattr("minirlhf.algorithms.ref_logps.source_code", lambda *rooms: "another")
    precomputed(tmp_path, trainer=trainer())
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], lambda data: b""]
)
def test_a_damaged_file_is_computed_again_with_a_line(tmp_path, capsys, damage):
    expected = precomputed(tmp_path).ref_policy.found
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    found = precomputed(tmp_path).ref_policy.found
    assert all((x == y).all() for x, y in zip(found, expected, strict=True))
    assert f"{path}: damaged (" in capsys.readouterr().out
    precomputed(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_row_that_was_not_computed_is_refused(tmp_path):
    trainer = precomputed(tmp_path, rows=ROWS[:20])
    with pytest.raises(InputError, match="^precompute_ref_logps: a batch has a sequence whose log-probs were not"):
        trainer.evaluate(ROWS)
    with pytest.raises(InputError, match="^precompute_ref_logps: a batch has a sequence"):
        trainer.evaluate([with_gap(ROWS[0])])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"^precompute_ref_logps: cannot write .*file.* name another folder or none"):
        precomputed(tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"ref_update_every": 2}, "ref_update_every moves it"), ({"loss": "simpo"}, "simpo has none here"),
     ({"reference_free": True}, "sigmoid has none here")],
)  # fmt: skip
def test_it_needs_a_reference_that_stays(settings, reason):
    with pytest.raises(
        InputError, match=f"^DPOConfig: precompute_ref_logps needs a reference that stays, but {reason}"
    ):
        DPOConfig(precompute_ref_logps=True, **settings)


# The rows of a job's stage


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
