"""The journal of a run, the names of the metrics, and the table for the terminal."""

import io
import json
import re
import subprocess
import sys
import time

import pytest
import tiny

from minirlhf.training.journal import Journal, peak_memory_mb
from minirlhf.training.table import table
from minirlhf.training.vocabulary import METRICS, metrics_help


def write(folder, resumed_at, steps, samples=()):
    journal = Journal(folder, resumed_at)
    for k in steps:
        journal.step(k, {"loss": k / 2}, list(samples))


def steps(folder, name="metrics.jsonl"):
    return [json.loads(line)["step"] for line in (folder / name).read_text(encoding="utf-8").split("\n")[:-1]]


# headlines without meaning for a recipe
NOT_MEASURED = {"reinforce++": {"equal_groups"}, "bco": {"kl"}, "bco_weighted": {"kl"}}


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_metric_a_trainer_emits_is_explained(case):
    trainer = tiny.CASES[case]()
    emitted = trainer.step(tiny.batches(8)[0]).keys()
    assert emitted <= METRICS.keys()
    assert {name for name in trainer.headline if "/" not in name} - emitted == NOT_MEASURED.get(case, set())


def test_help_shows_every_metric_with_its_unit_and_meaning():
    text = metrics_help()
    for name, (unit, meaning) in METRICS.items():
        assert re.search(rf"^  {name} +\[{re.escape(unit)}\]  {re.escape(meaning)}$", text, re.MULTILINE)
    assert "docs/metrics.md" in text


def test_a_step_writes_a_line_of_metrics_a_line_of_timing_and_its_samples(tmp_path):
    write(tmp_path, 0, range(3), [{"prompt": "é", "score": 1.0}])
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[2] == '{"step": 2, "loss": 1.0}'
    assert [steps(tmp_path, f"{name}.jsonl") for name in ("timings", "samples")] == [[0, 1, 2]] * 2
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0]) == {
        "step": 0,
        "prompt": "é",
        "score": 1.0,
    }


def test_metrics_do_not_depend_on_the_clock(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, 0, range(3))
        time.sleep(0.02)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    timing = json.loads((tmp_path / "a" / "timings.jsonl").read_text().splitlines()[0])
    assert (
        timing["seconds"] >= 0
        and 50 < timing["memory_mb"] < 50_000
        and abs(timing["memory_mb"] - peak_memory_mb()) < 500
    )


def test_lines_are_in_the_files_before_the_journal_closes(tmp_path):
    Journal(tmp_path, 0).step(0, {"loss": 1.0}, [])
    assert steps(tmp_path) == [0]


def test_a_resumed_journal_drops_later_steps_and_a_half_line(tmp_path):
    write(tmp_path, 0, range(5), [{"text": "x"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    write(tmp_path, 3, [3, 4], [{"text": "y"}])
    assert steps(tmp_path) == steps(tmp_path, "timings.jsonl") == steps(tmp_path, "samples.jsonl") == list(range(5))
    assert [json.loads(line)["text"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == list("xxxyy")


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x85", "\x1c", "\r\n"])
def test_a_sample_with_a_line_separator_inside_survives_a_resume(tmp_path, text):
    write(tmp_path, 0, range(3), [{"text": f"a{text}b"}])
    write(tmp_path, 2, [2], [{"text": f"a{text}b"}])
    assert steps(tmp_path, "samples.jsonl") == [0, 1, 2]


def test_the_log_has_times_and_is_appended_to_by_a_resume(tmp_path, capsys):
    for show in (True, False):
        journal = Journal(tmp_path, 0)
        journal.log(f"shown {show}", show)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)", line)[1] for line in lines] == [
        "shown True",
        "shown False",
    ]
    assert capsys.readouterr().err == "shown True\n"


def test_the_names_of_metrics_and_the_settings_load_without_torch():
    program = """
import sys
from minirlhf.training import METRICS
from minirlhf.training.settings import parse_settings
assert "loss" in METRICS and "torch" not in sys.modules
from minirlhf.training import Run
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_table_has_names_on_the_left_and_numbers_on_the_right():
    text = table(["name", "before", "after"], [["gold reward", -0.01234, None], ["n", 1024, 0.5]])
    assert text.split("\n") == [
        "name         before  after",
        "-----------  ------  -----",
        "gold reward  -0.012      -",
        "n              1024  0.500",
    ]


def test_a_shown_line_leaves_the_program_at_once(tmp_path, monkeypatch):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, write_through=False))
    Journal(tmp_path, 0).show("step 1")
    assert file.getvalue() == b"step 1\n"
