"""The doctor during a run."""

import json

from minirlhf.jobs import warnings
from minirlhf.jobs.warnings import warner

from ..seeing.made import make_run


def follow(folder, steps, monkeypatch):
    """The journal writes a line, then `on_metrics` is called, as `Run.record` does."""
    make_run(folder, steps=1)
    (folder / "metrics.jsonl").write_text("")
    warn = warner(folder, steps)
    for step in range(steps):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "clip_fraction": 0.5, "ended": 0.0}) + "\n")
        warn(step, {})


def test_each_finding_is_said_once_during_the_run(tmp_path, monkeypatch, capsys):
    follow(tmp_path / "ppo", 40, monkeypatch)
    err = capsys.readouterr().err
    assert max(map(len, err.splitlines())) <= 80
    first, second = " ".join(err.split()).replace(" doctor: ", "\ndoctor: ").splitlines()
    assert first.startswith("doctor: ppo: the clip acts on too many tokens: in the last 5 steps")
    assert second.startswith("doctor: ppo: the policy never writes an end token: ")
    assert second.replace(" ", "").endswith(f";seeminirlhfdoctor{tmp_path / 'ppo'}".replace(" ", ""))


def test_a_fault_of_the_doctor_ends_no_run_and_long_runs_are_read_20_times(tmp_path, monkeypatch, capsys):
    reads = []

    def broken(folder):
        reads.append(folder)
        raise OSError("no disk")

    monkeypatch.setattr("minirlhf.seeing.reading.read_run", broken)
    warn = warner(tmp_path, 1000)
    for step in range(1000):
        warn(step, {})
    assert len(reads) == warnings.TIMES
    assert capsys.readouterr().err.count("doctor: ") == 1
