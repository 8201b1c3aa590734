"""Two jobs never write into one folder: locks, and folders that a job finds again."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from minirlhf.errors import InputError
from minirlhf.jobs import folder as folder_module
from minirlhf.jobs.folder import find_output, make_empty, take_output
from minirlhf.jobs.settings import JobConfig
from minirlhf.training import Run, RunConfig, lock


@contextlib.contextmanager
def another_process(act):
    """Another process that does `act` and lives until the end of the block -> its process id."""
    ready, done = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            act()
            os.write(done, b".")
            signal.pause()
        os._exit(0)
    os.close(done)  # if the process fails, reading ends
    try:
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def run_in(folder, **config):
    return Run(RunConfig(output=str(folder), eval_every=0, **config), tiny.sft(torch.float32, 2), tiny.batches(8, 2))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_use_is_refused_with_process_and_host_until_that_process_is_killed(tmp_path):
    run = run_in(tmp_path / "run")
    for batch in run:
        run.record(run.trainer.step(batch))
        break
    with another_process(lambda: lock.lock(tmp_path / "run")) as pid:
        before = files(tmp_path)
        for option in ("resume", "overwrite"):
            with pytest.raises(InputError) as caught:
                run_in(tmp_path / "run", **{option: True})
            assert str(caught.value) == (
                f"{tmp_path / 'run'}: in use by process {pid} on {socket.gethostname()}; wait until it ends, or choose "
                "another --output"
            )
        assert files(tmp_path) == before
    assert (tmp_path / "run" / lock.LOCK).exists()  # the killed process has left it
    run = run_in(tmp_path / "run", resume=True)
    for batch in run:
        run.record(run.trainer.step(batch))
    assert not (tmp_path / "run" / lock.LOCK).exists()
    with another_process(lambda: lock.lock(tmp_path / "run")):
        pass  # a finished run is free, although the program that trained it lives on


def test_a_run_that_is_refused_leaves_its_folder_free(tmp_path):
    run_in(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        run_in(tmp_path / "run")
    with another_process(lambda: lock.lock(tmp_path / "run")):
        pass


def test_a_fork_of_a_killed_job_does_not_hold_its_lock(tmp_path):
    def with_child():
        lock.lock(tmp_path)
        if not (child := os.fork()):
            os.write(told[1], b".")
            signal.pause()
        children.write_text(str(child))

    children, told = tmp_path / "child", os.pipe()
    with another_process(with_child):
        os.read(told[0], 1)
        with pytest.raises(InputError, match="in use"):
            lock.lock(tmp_path)
    lock.lock(tmp_path)
    os.kill(int(children.read_text()), signal.SIGKILL)


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys):
    def flock(handle, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_told", [])
    lock.lock(tmp_path / "a")
    lock.lock(tmp_path / "b")
    assert capsys.readouterr().out == (
        f"{tmp_path / 'a'}: this file system has no locks, so two jobs in one folder would not notice each other\n"
    )


def test_jobs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start, pids = os.pipe(), []
    for number in range(4):
        if not (pid := os.fork()):
            with contextlib.suppress(BaseException):
                os.read(start[0], 1)
                folder = take_output(find_output(JobConfig(), "ppo"), JobConfig(), "ppo", "sft")
                Path(f"{number}.txt").write_text(str(folder))
            os._exit(0)
        pids.append(pid)
    os.write(start[1], b"....")
    for pid in pids:
        os.waitpid(pid, 0)
    taken = {Path(f"{number}.txt").read_text() for number in range(4)}
    assert taken == {f"runs/ppo-00{number}" for number in range(1, 5)}


def test_a_job_that_begins_while_another_looks_for_a_folder_refuses_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    next_number = folder_module._next

    def and_another_job_takes_it(name):
        folder = next_number(name)
        (folder / "sft").mkdir(parents=True)
        (folder / "sft" / "config.toml").touch()
        return folder

    monkeypatch.setattr(folder_module, "_next", and_another_job_takes_it)
    found = find_output(JobConfig(), "ppo")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert take_output(found, JobConfig(), "ppo", "sft") == Path("runs/ppo-002")


def test_a_second_resume_of_a_job_is_refused(tmp_path):
    job = JobConfig(output=str(tmp_path / "job"), resume=True)
    with (
        another_process(lambda: take_output(tmp_path / "job", job, "ppo", "sft")) as pid,
        pytest.raises(InputError, match=f"in use by process {pid} on "),
    ):
        take_output(tmp_path / "job", job, "ppo", "sft")


def test_half_written_files_of_a_killed_start_are_deleted(tmp_path):
    job = JobConfig(output=str(tmp_path / "job"), resume=True)
    halves = [".summary.json.7.tmp", ".tokenizer.7.tmp/a", "sft/.model.7.tmp/a", "sft/checkpoints/.step-2.7.old.tmp/a"]
    kept = ["tokenizer/a", "sft/config.toml", "sft/model/a", "sft/checkpoints/step-2/a"]
    for path in (tmp_path / "job" / name for name in [*halves, *kept]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    take_output(tmp_path / "job", job, "ppo", "sft")
    found = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert found == {*kept, lock.LOCK}


def test_a_restarted_job_finds_its_own_folder_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps one
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    agent = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in (place | agent).items():
        monkeypatch.setenv(name, value)
    job = JobConfig()
    assert take_output(find_output(job, "ppo"), job, "ppo", "sft") == Path("runs/ppo-001")
    Path("runs/ppo-002/sft").mkdir(parents=True)  # of another job
    (Path("runs/ppo-002/sft") / "config.toml").touch()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert take_output(find_output(job, "ppo"), job, "ppo", "sft") == Path("runs/ppo-001")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")  # a job that was killed before it had a folder
    assert take_output(find_output(job, "ppo"), job, "ppo", "sft") == Path("runs/ppo-003")


def test_results_whose_folder_another_program_has_taken_go_to_a_fresh_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with another_process(lambda: lock.lock(tmp_path / "out")):
        assert make_empty("out", "eval") == Path("runs/eval-001")
    assert "out: in use by process " in capsys.readouterr().out
    Path("out/eval.json").touch()
    assert make_empty("out", "eval") == Path("runs/eval-002")
    assert capsys.readouterr().out == (
        "out: holds files already; choose another --output: results go to runs/eval-002 instead\n"
    )
    assert make_empty("free", "eval") == Path("free")
