"""A run that is followed from another terminal: its lines as they come, its state, its end."""

import json
import os
import socket
import subprocess
import sys

import pytest

from minirlhf.cli import run_watch
from minirlhf.cli.run import main
from minirlhf.columns import columns_of
from minirlhf.errors import InputError
from minirlhf.seeing.following import Followed, FollowedRun, Growing
from minirlhf.seeing.status import Rows, bar, status

from .made import lines, make_pipeline, make_run


def hold(folder, process=None, host=None):
    (folder / ".lock").write_text(f"process {process or os.getpid()} on {host or socket.gethostname()}\n")


def add(folder, name, *rows):
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_each_line_is_read_once_and_a_half_written_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = Growing(path)
    assert list(file.rows()) == []
    path.write_bytes(b'{"step": 0}\n{"step": 1')
    assert list(file.rows()) == [{"step": 0}]
    path.write_bytes(b'{"step": 0}\n{"step": 1}\nnonsense\n[]\n{"step": 2}\n')
    assert list(file.rows()) == [{"step": 1}, {"step": 2}] and list(file.rows()) == []
    path.write_bytes(b'{"step": 0}\n')  # a resumed run cuts its file
    assert list(file.rows()) == [{"step": 0}]


def test_a_first_look_begins_near_the_end_of_a_large_file(tmp_path):
    lines(tmp_path / "samples.jsonl", [{"step": k} for k in range(1000)])
    file = Growing(tmp_path / "samples.jsonl", most=100)
    assert 3 <= len(found := list(file.rows())) <= 8 and found[-1] == {"step": 999}


def test_a_line_that_is_too_long_is_skipped(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 0, "text": "' + b"x" * 3_000_000 + b'"}\n{"step": 1}\n')
    assert list(Growing(path).rows()) == [{"step": 1}]


def test_the_bar_has_eighths_of_a_column():
    # half of 4 columns is 2; a sixteenth of 4 columns is 2 eighths; a share above 1 is full
    assert [bar(x, 4) for x in (0, 0.5, 1 / 16, 1, 7)] == ["    ", "██  ", "▎   ", "████", "████"]


def test_a_finished_pipeline_is_shown_once(tmp_path, capsys):
    folder = make_pipeline(tmp_path / "job")
    (folder / "stages.json").write_text('{"sft": 1, "reward": null, "ppo": "long"}')
    main(["watch", str(folder)])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "sft step     gold    score"
    assert out[1].split() == ["5", "0.050", "2.000"]
    # thirds of the range: round(7 / 3) = 2 and round(14 / 3) = 5 of the bars 0 to 7
    assert out[5] == "   trend     ▁▃▆█     ▁▃▆█"
    assert [line.split()[0] for line in out if " step  " in line] == ["sft", "reward", "ppo"]
    assert "stage 3 of 3: ppo |████████████████████████| 20 of 20 steps" in out
    assert "10 s, this stage has finished, 0.5 s a step" in out and "memory 119 MB at the peak" in out
    assert out[-7:] == [
        "sample after 20 steps: score 19",
        "  prompt: p0",
        "  completion: answer 0 of step 19",
        "sample after 20 steps: score 19.1",
        "  prompt: p1",
        "  completion: answer 1 of step 19",
        "job: finished in 30 s",
    ]


def test_the_time_left_is_that_of_the_last_steps(tmp_path):
    # 4 steps of 0.5 s, 6 are left: 3 s. By the rough numbers PPO takes 4 times as long as the 5 s of SFT: 23 s
    folder = make_run(tmp_path / "sft", steps=4, planned=10, finished=False)
    hold(folder)
    (folder / "stages.json").write_text('{"sft": 30, "ppo": 120}')
    job = Followed(folder)
    job.look()
    assert status(job)[:2] == [
        "stage 1 of 2: sft |█████████▋              | 4 of 10 steps",
        "2 s, about 3 s left of the stage, 23 s of the job, 0.5 s a step",
    ]
    os.utime(folder / "metrics.jsonl", (0, 0))
    assert "no step for" in status(job)[1]


def test_a_run_is_followed_until_its_process_has_ended(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "job/ppo", steps=6, planned=20, finished=False)
    hold(tmp_path / "job")

    def sleep(seconds):
        begun = len((folder / "metrics.jsonl").read_text().splitlines())
        add(folder, "metrics.jsonl", {"step": begun, "loss": 0.5, "kl": 1.0, "eval/gold_reward": begun / 10})
        if begun == 8:
            (tmp_path / "job/.lock").unlink()

    monkeypatch.setattr(run_watch.time, "sleep", sleep)
    main(["watch", str(tmp_path / "job")])
    out = capsys.readouterr().out.splitlines()
    rows = [line.split()[:2] for line in out if line.startswith("    ")]
    assert rows == [["5", "0.050"], ["7", "0.600"], ["8", "0.700"], ["9", "0.800"]]
    assert len([line for line in out if line.startswith("ppo |")]) == 1  # a pipe gets a state once a minute
    assert out[-1] == "job: ppo ended at step 9 of 20 before its last step"


def test_ctrl_c_ends_the_watch_and_not_the_job(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "ppo", planned=50, finished=False)
    hold(folder)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_watch.time, "sleep", interrupt)
    main(["watch", str(folder)])
    assert capsys.readouterr().out.splitlines()[-1] == "no longer watched; the job goes on"


def test_on_a_terminal_a_new_state_replaces_the_last(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = run_watch.Screen()
    screen.show(["row 1"], ["a", "b"])
    screen.show([], ["a", "b"])  # nothing is new
    screen.show(["row 2"], ["c"])
    assert capsys.readouterr().out == "row 1\na\nb\n\x1b[2A\x1b[Jrow 2\nc\n"


def test_a_killed_process_holds_no_folder_and_one_of_another_machine_does(tmp_path):
    job = Followed(make_run(tmp_path / "ppo"))
    assert not job.going_on
    hold(tmp_path / "ppo", dead())
    assert not job.going_on
    hold(tmp_path / "ppo")
    assert job.going_on
    hold(tmp_path / "ppo", dead(), "another-machine")
    assert job.going_on


def test_a_run_that_goes_back_to_a_checkpoint_shows_each_evaluation_once(tmp_path):
    folder = make_run(tmp_path / "ppo", steps=10, finished=False)
    job, rows = Followed(folder), Rows()
    job.look()
    assert [line.split()[0] for line in rows.new(job)] == ["ppo", "5", "10"]
    lines(folder / "metrics.jsonl", [{"step": k, "loss": 1.0, "eval/loss": 1.0} for k in range(6)])
    job.look()
    assert job.runs[0].step == 6 and [step for step, _ in job.runs[0].evaluations] == [1, 2, 3, 4, 5, 6]
    add(folder, "metrics.jsonl", {"step": 11, "loss": 1.0, "eval/loss": 1.0})
    job.look()
    assert [line.split()[0] for line in rows.new(job)] == ["12"]


def test_long_tables_are_shown_from_their_end(tmp_path):
    job = Followed(make_run(tmp_path / "ppo", steps=200))
    job.look()
    shown = Rows(most=3).new(job)
    assert shown[0] == "37 earlier evaluations of ppo are not shown"
    assert [line.split()[0] for line in shown[2:]] == ["190", "195", "200", "trend"]


def test_folders_without_runs_and_with_many_are_refused(tmp_path):
    with pytest.raises(InputError, match="needed the folder of a run or a job, found none; check the path"):
        main(["watch", str(tmp_path / "none")])
    with pytest.raises(InputError, match="needed a folder with a run in it, found none; check the path"):
        main(["watch", str(tmp_path)])
    hold(tmp_path)
    job = Followed(tmp_path)
    job.look()
    assert status(job) == [f"{tmp_path.name}: no stage has begun yet"]
    job.runs = [FollowedRun(tmp_path)] * 21
    with pytest.raises(InputError, match="needed one run or job, found 21 runs; name one of them"):
        job.look()


def test_texts_of_strangers_fit_80_columns_and_move_no_cursor(tmp_path):
    folder = make_run(tmp_path / "如何学习强化学习如何学习强化学习", steps=3, planned=10**9, finished=False)
    texts = {
        "prompt": "如何学习？" * 50,
        "completion": "a\x1b[31m\r\n\x9b👩‍👩‍👧‍👦é" * 40,
        "score\x1b[2J": 1e299,
        "n": None,
    }
    lines(folder / "samples.jsonl", [{"step": 3, **texts}, {"step": 3, "prompt": ["no text"], "turns": 1}])
    metrics = {f"名\x1b{k}": 1e299 for k in range(50)} | {"eval/名\x1b": "text\x1b", "loss": "text", "kl": None}
    lines(folder / "metrics.jsonl", [{"step": 3, **metrics}])
    lines(folder / "timings.jsonl", [{"step": 3, "seconds": "x", "memory_mb": None}, {"step": 4, "seconds": -1}])
    (folder / "stages.json").write_text('{"如何学习强化学习如何学习强化学习": 1, "x": 1e999, "\\u001b": -1}')
    job = Followed(folder)
    job.look()
    for line in [*Rows().new(job), *status(job)]:
        assert columns_of(line) <= 80 and line.replace("\u200d", "").isprintable(), line
    for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "log.txt", "stages.json"):
        (folder / name).write_bytes(b"\xff\xfe[" * 1000)
    job = Followed(folder)
    job.look()
    assert Rows().new(job) == [] and status(job) == [f"{folder.name}: step 0", "0 s"]
