"""torchrun starts a job again, machines join, a cluster sends signals: nothing that was saved is lost."""

import argparse
import os
import signal
import subprocess
import sys
import time

import pytest
import two_agents

from minirlhf.training.checkpoint import is_complete

pytestmark = pytest.mark.slow
USER = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")  # as in docs/multi_node.md


@pytest.mark.parametrize("job", ["1 2 c10d", "1 2 standalone", "1 4 c10d", "2 1 c10d", "2 1 static"])
def test_killed_workers_come_back_and_the_files_are_those_of_an_undisturbed_job(job):
    agents, processes, rendezvous = job.split()
    flags = ["--jobs", "2", "--agents", agents, "--processes", processes, "--rendezvous", rendezvous]
    done = subprocess.run([sys.executable, two_agents.__file__, *flags], capture_output=True, text=True, timeout=1200)
    assert done.stdout.splitlines()[-1:] == ["2 of 2 jobs came back and ended with the same files"], done


def test_a_torchrun_that_comes_late_joins_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("STEP", "8")  # seconds of a step: the second torchrun must come before the end
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")  # the job sets it; it is put back afterwards
    job, codes = two_agents.joined_late(tmp_path / "job")
    log = (tmp_path / "job/run/log.txt").read_text()
    assert codes == [0, 0] and is_complete(tmp_path / "job/run/model"), log
    assert "stopped at step" in log and len(job.starts()) == 2 and job.starts()[1] >= 2


@pytest.mark.parametrize(
    ("target", "signals", "flags"),
    [
        ("torchrun", "SIGTERM", ()),
        ("torchrun", "SIGUSR1", USER),
        ("worker", "SIGTERM", ()),
        ("worker", "SIGUSR1 SIGTERM SIGTERM", ()),
    ],
)
def test_a_signal_ends_the_job_with_a_checkpoint(tmp_path, target, signals, flags):
    options = argparse.Namespace(agents=1, processes=2, rendezvous="c10d")
    job = two_agents.start(tmp_path / "job", options, flags)
    job.wait_until(lambda: job.last_checkpoint() >= 2)
    victim, begun = (job.agents[0].pid if target == "torchrun" else job.workers()[-1]), time.monotonic()
    for name in signals.split():
        os.kill(victim, getattr(signal, name))
    run = tmp_path / "job" / "run"
    job.wait_until(lambda: "stopped at step" in (run / "log.txt").read_text())
    saved = time.monotonic() - begun
    codes = job.codes()
    print(f"{signals} to {target}: saved after {saved:.1f} s, torchrun ended after {time.monotonic() - begun:.1f} s")
    assert codes == [1] and is_complete(run / "checkpoints" / f"step-{job.last_checkpoint()}")
    assert f"stopped at step {job.last_checkpoint()} with a checkpoint" in (run / "log.txt").read_text()
    assert not (run / "model").exists()
