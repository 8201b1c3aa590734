"""The end of a program under torchrun: one line for an error in the input, and a report where processes differ."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minirlhf import torchrun

ROOT = Path(__file__).parents[2]
PROGRAM = """
from minirlhf.errors import InputError, exits_cleanly

@exits_cleanly
def main():
    raise InputError("x: needed y, got z")

main()
"""


def test_an_error_of_all_processes_is_one_line_without_a_report(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "program.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command[3:3] = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]  # as under Slurm
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGUSR2 and done.stdout == ""
    assert done.stderr in [f"[rank {rank}] error: x: needed y, got z\n" for rank in range(2)]


@pytest.mark.parametrize(("others", "signals"), [([], []), (["1"], [(7, signal.SIGUSR2)])])
def test_torchrun_lives_unless_all_processes_end_with_the_same_error(tmp_path, monkeypatch, capsys, others, signals):
    sent = []
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    monkeypatch.setattr(torchrun, "PATIENCE", 0.05)
    monkeypatch.setattr(torchrun, "_is_torchrun", lambda process: True)
    monkeypatch.setattr(torchrun.os, "getppid", lambda: 8 if sent else 7)
    monkeypatch.setattr(torchrun.os, "kill", lambda *call: sent.append(call))
    torchrun.end("error: x")
    (folder,) = tmp_path.iterdir()
    for rank in others:
        (folder / rank).touch()
    if others:
        torchrun.end("error: x")
    torchrun.end("error: y")  # alone with this error
    assert sent == signals and capsys.readouterr().err == "[rank 0] error: x\n[rank 0] error: y\n"


def test_without_torchrun_no_other_process_is_touched(tmp_path, monkeypatch, capsys):
    """The variables of torchrun, handed on by another program: the parent of this process is no torchrun."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(torchrun.os, "kill", lambda *_: pytest.fail("a signal to a program that is no torchrun"))
    torchrun.end("error: x")
    torchrun.end("error: x")  # a second program: its message is not lost
    torchrun.end("error: y")
    assert capsys.readouterr().err == "error: x\nerror: x\nerror: y\n" and not list(tmp_path.iterdir())


def test_a_message_before_the_end_is_shown_once_and_ends_no_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    monkeypatch.setattr(torchrun, "_is_torchrun", lambda process: True)
    monkeypatch.setattr(torchrun.os, "kill", lambda *_: pytest.fail("a message ends no process"))
    torchrun.show_once("a table")
    torchrun.show_once("a table")  # of another process
    assert capsys.readouterr().err == "a table\n"


def test_a_folder_that_is_gone_prevents_no_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "attempt_0" / "0" / "error.json"))
    monkeypatch.setattr(torchrun, "_is_torchrun", lambda process: True)
    torchrun.end("error: x")
    assert capsys.readouterr().err == "error: x\n"


def test_a_folder_of_the_user_is_no_meeting_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    torchrun.end("error: x")
    assert capsys.readouterr().err == "error: x\n" and not list((tmp_path / "none").iterdir())


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """starts(count): a new process of a job that torchrun has restarted `count` times."""
    monkeypatch.setattr(torchrun, "_is_torchrun", lambda process: True)

    def new_process(count, ranks=1):
        torchrun._finds_note.cache_clear()
        monkeypatch.setattr(torchrun, "agreed", None)
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"attempt_{count}" / "0" / "error.json"))

    yield new_process
    torchrun._finds_note.cache_clear()


def test_a_restart_is_known_although_torchrun_counts_none_if_machines_join(starts):
    starts(0)
    assert not torchrun.restarted() and not torchrun.restarted()  # its own note is none
    starts(0)
    assert torchrun.restarted()
    starts(1)
    assert torchrun.restarted()


def test_processes_that_meet_take_the_answer_on_which_they_agreed(starts):
    starts(0, ranks=2)
    assert not torchrun.restarted()
    starts(0, ranks=2)
    assert not torchrun.restarted()  # no note yet: the processes of the first start have not met
    torchrun.settle(False)
    starts(0, ranks=2)
    assert torchrun.restarted()
    torchrun.settle(False)
    assert not torchrun.restarted()
