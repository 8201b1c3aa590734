"""Run folders, whole and broken, as series and samples within bounds."""

import json
import math
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.errors import InputError
from minirlhf.seeing import reading
from minirlhf.seeing.reading import ROWS, STEPS, read_job, read_run
from minirlhf.seeing.series import Series

from .made import lines, make_pipeline, make_run


def test_reading_and_drawing_load_no_torch():
    program = """
import sys, minirlhf.seeing
from importlib import import_module
from pathlib import Path
for path in Path(minirlhf.seeing.__path__[0]).glob("*.py"):
    import_module(f"minirlhf.seeing.{path.stem}")
assert not {"torch", "numpy", "tokenizers", "tqdm"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_series_keeps_every_value_while_few():
    series = Series(most=4)
    for step in range(1, 9):
        series.add(step, step * 10)
    assert series.width == 1
    assert [(bucket.step, bucket.mean) for bucket in series.buckets] == [(k, 10 * k) for k in range(1, 9)]


def test_a_long_series_keeps_means_and_ranges_of_neighbours():
    # nine values into buckets of two: (1, 2) (3, 4) (5, 6) (7, 8) and 9 alone
    series = Series(most=4)
    for step in range(1, 10):
        series.add(step, step)
    found = [(bucket.step, bucket.mean, bucket.low, bucket.high) for bucket in series.buckets]
    assert found == [(2, 1.5, 1, 2), (4, 3.5, 3, 4), (6, 5.5, 5, 6), (8, 7.5, 7, 8), (9, 9, 9, 9)]
    series.add(10, -1)
    assert series.buckets[-1][1:4] == (4.0, -1, 9)
    assert series.first == (1, 1) and series.last == (10, -1) and series.lowest == (10, -1) and series.highest == (9, 9)


@settings(max_examples=100)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 20))
def test_the_range_the_sum_and_the_bound_hold_for_any_values(values, most):
    series = Series(most)
    for step, value in enumerate(values, start=1):
        series.add(step, value)
    assert len(series.buckets) <= 2 * most and sum(bucket.count for bucket in series.buckets) == len(values)
    assert min(bucket.low for bucket in series.buckets) == min(values) == series.lowest[1]
    assert max(bucket.high for bucket in series.buckets) == max(values) == series.highest[1]
    assert series.total() == pytest.approx(sum(values), rel=1e-9, abs=1e-3)


def test_values_that_are_no_finite_numbers_are_counted():
    series = Series()
    for value in (math.nan, math.inf, "1", None, True, 10**400, [1]):
        series.add(1, value)
    assert series.left_out == 7 and not series.buckets


def test_the_last_stage_of_a_job_may_list_the_settings_of_earlier_stages(tmp_path):
    folder = make_run(tmp_path / "ppo", kind="sft")
    with (folder / "config.toml").open("a") as file:
        file.write("[ppo]\nlr = 0.1\n")
    assert read_run(folder).kind == "ppo"
    assert read_run(make_run(tmp_path / "elsewhere", kind="dpo")).kind == "dpo"


def test_a_run_is_read_whole(tmp_path):
    run = read_run(make_run(tmp_path / "ppo", steps=20, lr=0.5))
    assert (run.name, run.kind, run.steps, run.planned, run.starts) == ("ppo", "ppo", 20, 20, 1)
    assert run.finished and not run.notes and run.seconds == 10.0
    assert run.settings["ppo.lr"] == 0.5 and run.settings["seed"] == 0
    assert run.metrics["kl"].last == (20, 2.0)  # a step is counted as in the names of checkpoints
    assert [bucket.step for bucket in run.metrics["eval/gold_reward"].buckets] == [5, 10, 15, 20]
    assert run.samples[-1][0] == 20 and run.samples[-1][1][3]["completion"] == "answer 3 of step 19"


def test_the_stages_of_a_pipeline_come_in_the_order_of_their_starts(tmp_path):
    job = read_job(make_pipeline(tmp_path / "job"))
    assert [run.name for run in job.runs] == ["sft", "reward", "ppo"]
    assert job.summary["after"] == {"gold_reward": 0.75}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="needed the folder of a run or a pipeline, found none; check the path"):
        read_job(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"needed a folder with a run in it, found none; a run has metrics.jsonl"):
        read_job(tmp_path)


def test_more_than_40_runs_in_a_folder_are_refused_before_they_are_read(tmp_path, monkeypatch):
    for k in range(41):
        (tmp_path / f"run-{k}").mkdir()
        (tmp_path / f"run-{k}" / "metrics.jsonl").touch()
    monkeypatch.setattr(reading, "read_run", None)
    with pytest.raises(InputError, match="needed at most 40 runs, found 41; name a folder further below"):
        read_job(tmp_path)


BROKEN = {
    "metrics.jsonl": {
        b'{"step": 0, "kl": 1.0}\n{"step": 1, "kl": 2.0}\n{"step": 2, "k': "the last line is half-written",
        b'{"step": 0, "kl": 1.0}\n\xff\xfe\n[1]\n{"step": 1, "kl": 2.0}\n': "2 lines not readable, the first is line 2",
        b'{"step": 0, "kl": 1.0}\n{"step": 1, "kl": 2.0}\n{"step": 0, "kl": 9.0}\n': "1 line of an earlier step, after",
        b'{"step": 0, "kl": 1.0}\n{"step": 1, "kl": NaN}\n{"step": 1, "kl": 2.0}\n': "'kl': 1 value not finite",
        b'{"step": 0, "kl": 1.0}\n{"step": 1, "kl": 2.0}\n' + b"[" * 100_000 + b"\n": "1 line not readable",
        b'{"step": -1, "kl": 1}\n{"step": true, "kl": 1}\n{"step": 0, "kl": 1.0}\n{"step": 1, "kl": 2.0}\n': "2 lines",
    },
    "config.toml": {b"[ppo\n": "config.toml is broken", b"\xff": "config.toml is broken"},
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, each in BROKEN.items() for content in each])
def test_a_broken_file_gives_its_readable_part_and_a_note(tmp_path, name, content):
    (make_run(tmp_path / "ppo") / name).write_bytes(content)
    run = read_run(tmp_path / "ppo")
    assert any(BROKEN[name][content] in note for note in run.notes), run.notes
    if name == "metrics.jsonl":
        assert [bucket.mean for bucket in run.metrics["kl"].buckets][:1] == [1.0]
        assert run.metrics["kl"].last in ((2, 2.0), (1, 1.0))


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "log.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    (make_run(tmp_path / "ppo") / name).unlink()
    assert [note for note in read_run(tmp_path / "ppo").notes if note.startswith(f"{name} cannot be read")]


def test_an_empty_file_is_no_fault(tmp_path):
    folder = make_run(tmp_path / "ppo")
    for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl"):
        (folder / name).write_bytes(b"")
    run = read_run(folder)
    assert run.steps == 0 and run.seconds is None and not run.notes


def test_a_broken_summary_is_named(tmp_path):
    folder = make_pipeline(tmp_path / "job")
    for content in ("[1]", "{", '{"a": ' * 50_000):
        (folder / "summary.json").write_text(content)
        job = read_job(folder)
        assert job.summary == {} and "summary.json is broken" in job.notes[0]


def test_of_many_samples_some_steps_are_kept_among_them_the_last(tmp_path):
    run = read_run(make_run(tmp_path / "ppo", steps=311, samples=ROWS + 1))
    steps = [step for step, _ in run.samples]
    assert STEPS <= len(steps) <= 2 * STEPS and steps[0] == 1 and steps[-1] == 311
    gaps = {later - earlier for earlier, later in zip(steps[:-1], steps[1:-1], strict=False)}
    assert gaps == {8} and {len(rows) for _, rows in run.samples} == {ROWS}
    assert f"samples.jsonl is long: the samples of {len(steps)} of its 311 steps are shown" in run.notes
    assert f"samples.jsonl: {ROWS} rows of a step are shown, 311 rows are left out" in run.notes


def test_the_memory_is_bounded_however_long_the_files_are(tmp_path):
    peaks = []
    for steps in (800, 3200):
        folder = make_run(tmp_path / f"ppo-{steps}", steps=1)
        lines(folder / "metrics.jsonl", ({"step": k, "kl": k / 10} for k in range(steps)))
        lines(folder / "samples.jsonl", ({"step": k, "prompt": "p", "completion": "x" * 2000} for k in range(steps)))
        tracemalloc.start()
        read_run(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < 3e6


def test_too_many_metrics_are_named(tmp_path):
    folder = make_run(tmp_path / "ppo")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **{f"m{k}": k for k in range(500)}}) + "\n")
    run = read_run(folder)
    assert len(run.metrics) == 200 and "metrics.jsonl: 200 metrics are shown, 300 are left out" in run.notes
