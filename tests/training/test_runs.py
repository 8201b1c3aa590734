"""Folders of runs, as `minirlhf run` reads them."""

import json
import os
import subprocess
import sys

import pytest

from minirlhf.errors import InputError
from minirlhf.manifest import write_manifest
from minirlhf.training import checkpoint, runs
from minirlhf.training.journal import Journal


@pytest.fixture
def make(tmp_path):
    """make(name, rows, settings): a run's folder, with the files that a run writes."""

    def make(
        name, rows, settings="seed = 0\n\n[model]\nhidden_size = 64\n\n[ppo]\nlr = 0.001\n", planned=None, saved=()
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(settings)
        lines = "".join(json.dumps({"step": k, **row}) + "\n" for k, row in enumerate(rows))
        (folder / "metrics.jsonl").write_text(lines)
        lines = "".join(json.dumps({"step": k, "seconds": 0.5, "memory_mb": 100 + k}) + "\n" for k in range(len(rows)))
        (folder / "timings.jsonl").write_text(lines)
        (folder / "log.txt").write_text(f"2026-01-01 00:00:00  started at step 0 of {planned or len(rows)}\n")
        for step in saved:
            with checkpoint.written_whole(folder / f"checkpoints/step-{step}") as part:
                checkpoint.save_state(part, {"step": step, "best": {"step": saved[0], "value": 1.0}})
        return folder

    return make


def test_a_run_is_read_from_its_files(make):
    folder = make("a", [{"loss": 3.0}, {"loss": 1.0, "eval/accuracy": 0.5}, {"loss": 2.0}], planned=10, saved=(1, 3))
    found = runs.read_run(folder)
    assert (found.kind, found.steps, found.planned, found.finished) == ("ppo", 3, 10, False)
    assert (found.seconds, found.memory_mb) == (1.5, 102)
    assert found.settings == {"seed": 0, "model.hidden_size": 64, "ppo.lr": 0.001}
    # the row of step 1 is written after 2 steps, beside checkpoints/step-2
    assert found.curves["loss"] == runs.Curve(2.0, (1.0, 2), (3.0, 1))
    assert found.curves["eval/accuracy"] == runs.Curve(0.5, (0.5, 2), (0.5, 2))
    assert [row["step"] for row in found.evaluations] == [1]
    assert found.checkpoints == [1, 3] and found.best == 1 and found.incomplete == []


def test_a_run_has_finished_once_its_model_is_whole(make):
    folder = make("a", [{"x": 1}])
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    assert not runs.read_run(folder).finished
    write_manifest(folder / "model")
    assert runs.read_run(folder).finished


def test_the_first_of_equal_values_is_the_best(make):
    curve = runs.read_run(make("a", [{"x": 2}, {"x": 2}, {"x": 1}, {"x": 1}])).curves["x"]
    assert curve.best("max") == (2, 1) and curve.best("min") == (1, 3)


def test_what_is_no_number_has_no_curve(make):
    row = {"a": float("nan"), "b": float("inf"), "c": None, "d": "text", "e": True, "f": [1], "g": 1}
    assert set(runs.read_run(make("a", [row])).curves) == {"g"}


def test_the_files_of_a_journal_are_read_as_they_are_written(make):
    folder = make("a", [])
    for k in range(3):
        Journal(folder, k).step(k, {"kl": k / 2}, [{"prompt": f"p{k}", "completion": "c"}] * 2, evaluation=0.1)
    found = runs.read_run(folder)
    assert found.curves["kl"].last == 1.0 and found.steps == 3 and found.seconds is not None
    rows, steps = runs.samples_of(folder)
    assert [row["prompt"] for row in rows] == ["p2", "p2"] and rows[0]["step"] == max(steps)
    assert [row["step"] for row in runs.samples_of(folder, min(steps))[0]] == [min(steps)] * 2


def test_a_last_line_that_a_crash_cut_short_is_left_out(make):
    folder = make("a", [{"x": 1}, {"x": 2}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "x"')
    assert runs.read_run(folder).steps == 2


BROKEN = {
    "config.toml": [b"[ppo\n", b"\xff", b"a = " + b"[" * 100_000],
    "metrics.jsonl": [
        b'{"step": 0}\nnonsense\n',
        b'{"step": 0}\n{"step": "1"}\n',
        b'{"step": 0}\n[1]\n',
        b'{"step": 5}\n{"step": 3}\n',
        b'{"step": 0}\n{"step": -1}\n',
        b'{"step": true}\n{"step": 1}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
    ],
    "timings.jsonl": [b"nonsense\n", b"\xff\n"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, each in BROKEN.items() for data in each])
def test_a_damaged_run_is_named_and_the_others_are_read(make, tmp_path, name, data):
    make("good", [{"x": 1}])
    (make("bad", [{"x": 1}]) / name).write_bytes(data)
    found, damaged = runs.runs_below(tmp_path)
    assert [run.folder.name for run in found] == ["good"]
    assert len(damaged) == 1 and damaged[0].startswith(f"{tmp_path / 'bad' / name}: ")
    assert len(damaged[0]) < 400


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_a_run_without_one_of_its_files_is_named(make, tmp_path, name):
    (make("bad", [{"x": 1}]) / name).unlink()
    found, (line,) = runs.runs_below(tmp_path)
    assert not found and name in line and "No such file" in line


def test_a_run_without_timings_log_or_checkpoints_is_read(make):
    folder = make("a", [{"x": 1}])
    for name in ("timings.jsonl", "log.txt"):
        (folder / name).unlink()
    found = runs.read_run(folder)
    assert (found.seconds, found.memory_mb, found.planned, found.best) == (None, None, None, None)


def test_runs_are_found_at_any_depth_and_other_folders_are_not(make, tmp_path):
    for name in ("b/ppo-001/sft", "b/ppo-001/ppo", "a", ".hidden/run", "a/checkpoints/step-1"):
        make(name, [{"x": 1}])
    (tmp_path / "eval-001").mkdir()
    (tmp_path / "eval-001/config.toml").write_text("data = 'rows.jsonl'")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found, damaged = runs.runs_below(tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in found] == ["a", "b/ppo-001/ppo", "b/ppo-001/sft"]
    assert not damaged
    with pytest.raises(InputError, match="needed a folder with runs in it"):
        runs.runs_below(tmp_path / "none")


def test_incomplete_checkpoints_and_strange_names_are_told_apart(make):
    folder = make("a", [{"x": 1}], saved=(2, 10))
    (folder / "checkpoints/step-10/state.json").write_text("{}")  # another size than the manifest's
    (folder / "checkpoints/step-x").mkdir()
    (folder / "checkpoints/.step-3.1.tmp").mkdir()
    found = runs.read_run(folder)
    assert found.checkpoints == [2] and found.incomplete == ["step-10", "step-x"]


def test_complete_means_the_same_as_for_a_run_that_resumes(tmp_path):
    with checkpoint.written_whole(tmp_path / "whole") as part:
        (part / "weights").write_bytes(b"123")
    for name, manifest in {
        "short": '{"weights": 4}',
        "list": "[]",
        "broken": "{",
        "none": None,
        "lost": '{"x": 1}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"123")
        if manifest is not None:
            (tmp_path / name / "manifest.json").write_text(manifest)
    folders = [*tmp_path.iterdir(), tmp_path / "absent", tmp_path / "whole" / "weights"]
    answers = {folder.name: runs.is_complete(folder) for folder in folders}
    assert answers == {folder.name: checkpoint.is_complete(folder) for folder in folders}
    assert [name for name, complete in answers.items() if complete] == ["whole"]


def test_settings_that_differ(make):
    one = runs.read_run(make("a", [], "seed = 0\noutput = 'a'\n[ppo]\nlr = 1.0\nkl_coef = 0.1\n"))
    two = runs.read_run(make("b", [], "seed = 1\noutput = 'b'\n[ppo]\nlr = 1.0\nclip = true\n"))
    assert runs.differences([one, two]) == {"seed": [0, 1], "ppo.kl_coef": [0.1, None], "ppo.clip": [None, True]}
    assert runs.differences([one]) == {}


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("eval/loss", "min"), ("policy_loss", "min"), ("kl", "min"), ("eval/kl", "min"), ("eval/books/loss", "min"),
     ("eval/gold_reward", "max"), ("accuracy", "max"), ("eval/perplexity", "min")],
)  # fmt: skip
def test_the_better_end_of_a_metric(metric, mode):
    assert runs.better(metric) == mode


def test_reading_runs_loads_no_torch(tmp_path):
    program = "import sys\nfrom minirlhf.cli import run\nassert not {'torch', 'numpy', 'tqdm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
