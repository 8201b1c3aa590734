"""Elastic restarts: torchrun starts a job with one or two agents, a worker is killed at a random instant, and the files
of the job are compared with those of a job that nobody disturbed.

python tests/scaling/two_agents.py [--jobs 20] [--agents 2] [--processes 1] [--rendezvous c10d] [--seed 0]

An agent is a torchrun; on two machines each would have its own. Here both meet on the loopback of one machine. The kill
comes at a random time between the start of the first worker and the end of the work, so it also hits workers that still
import, or that are about to join. In every third job a second worker dies after the first. The exit code is 0 if every
job ends well, with the same files, and repeats no step that a checkpoint holds.

A worker that dies after all files are written, while its process ends, cannot be replaced: the others have ended well.
torchrun then fails, although nothing is lost. So no kill comes that late.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and sys.argv[1:2] == ["worker"]:  # before torch is imported: a kill may come that early
    (Path(sys.argv[2]) / "workers" / str(os.getpid())).write_text(os.environ["RANK"])

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "algorithms"), str(ROOT / "tests" / "scaling")]
STEP = float(os.environ.get("STEP", "1"))  # [s] that each step lasts longer, so that most kills come during training
SECONDS = 600  # [s] in which a job must end, on a busy machine too
RENDEZVOUS = ("c10d", "static", "standalone")


@dataclass
class Job:
    """The torchruns of one job, and its folder."""

    folder: Path
    agents: list[subprocess.Popen]
    wanted: int  # workers

    def workers(self) -> list[int]:
        """The process ids of the living workers, the newest last."""
        files = sorted((self.folder / "workers").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.name) for path in files if is_alive(int(path.name))]

    def wait_for_workers(self) -> None:
        self.wait_until(lambda: len(self.workers()) == self.wanted)

    def wait_until(self, condition) -> None:
        end = time.monotonic() + SECONDS
        while not condition() and not self.ended():
            if time.monotonic() > end:
                raise RuntimeError(f"{self.folder}: no sign within {SECONDS} seconds")
            time.sleep(0.02)

    def ended(self) -> bool:
        """True if a worker has done its work, or if all torchruns have ended."""
        return (self.folder / "done").exists() or all(agent.poll() is not None for agent in self.agents)

    def codes(self) -> list[int | None]:
        """The exit codes of the torchruns. None: it had to be killed."""
        end = time.monotonic() + SECONDS
        for agent in self.agents:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(max(0.1, end - time.monotonic()))
        codes = [agent.poll() for agent in self.agents]
        self.stop()
        return codes

    def stop(self) -> None:
        for agent in self.agents:
            agent.kill()
        for worker in self.workers():
            os.kill(worker, signal.SIGKILL)

    def last_checkpoint(self) -> int:
        steps = [int(path.name[5:]) for path in (self.folder / "run" / "checkpoints").glob("step-*")]
        return max(steps, default=0)

    def starts(self) -> list[int]:
        """The step of each start: 0, then those of the restarts."""
        log = self.folder / "run" / "log.txt"
        found = re.findall(r"(?:started|resumed) at step (\d+)", log.read_text()) if log.exists() else []
        return [int(step) for step in found]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def start(folder: Path, options: argparse.Namespace, flags: tuple[str, ...] = ("--max-restarts", "3")) -> Job:
    import ranks

    (folder / "workers").mkdir(parents=True)
    port = ranks.free_port()
    agents = [agent(folder, options, number, port, flags) for number in range(options.agents)]
    return Job(folder, agents, options.agents * options.processes)


def agent(
    folder: Path, options: argparse.Namespace, number: int, port: int, flags: tuple[str, ...], nodes: str | None = None
) -> subprocess.Popen:
    """A torchrun of a job; its output goes to agent-NUMBER.txt. flags: more flags of torchrun."""
    nnodes = ("--nnodes", nodes or str(options.agents))
    where = {
        "c10d": (*nnodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job"),
        "static": (*nnodes, "--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", str(port)),
        "standalone": ("--standalone",),
    }[options.rendezvous]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(options.processes)]
    program = [str(Path(__file__).resolve()), "worker", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MINIRLHF_TIMEOUT": "60"}
    with (folder / f"agent-{number}.txt").open("w") as output:
        return subprocess.Popen([*command, *flags, *program], env=env, cwd=folder, stdout=output, stderr=output)


def work(folder: Path) -> None:
    """A worker: eight steps of PPO, with a checkpoint every three steps."""
    import tiny
    import torch

    from minirlhf.runtime.distributed import process_group

    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        tiny.go_on("ppo", folder / "run", after_step=lambda step: time.sleep(STEP))
    (folder / "done").touch()


def undisturbed(folder: Path, options: argparse.Namespace) -> tuple[dict[str, bytes], float]:
    """-> (the files of a job, the seconds from its first worker to its end)"""
    import crash

    job = start(folder, options)
    job.wait_for_workers()
    begun = time.monotonic()
    if set(codes := job.codes()) != {0}:
        raise RuntimeError(f"{folder}: exit codes {codes} without a kill")
    return crash.files(folder / "run"), time.monotonic() - begun


def disturbed(
    rng: random.Random, folder: Path, options: argparse.Namespace, whole: dict[str, bytes], seconds: float, kills: int
) -> tuple[bool, list[str]] | None:
    """Kill workers of a job -> (it went well, the cells of its line). None if the job ended before the first kill."""
    import crash

    job, killed, floors = start(folder, options), [], []
    for number in range(kills):
        job.wait_for_workers()
        wait = seconds * rng.random()
        end = time.monotonic() + wait
        job.wait_until(lambda end=end: time.monotonic() > end)
        alive = job.workers()
        if job.ended() or not alive:
            if number == 0:
                job.codes()
                return None
            break
        worker = rng.choice(alive)
        rank = (folder / "workers" / str(worker)).read_text()
        floors.append(job.last_checkpoint())
        os.kill(worker, signal.SIGKILL)
        killed.append(f"rank {rank} at {wait:.2f} s, step {floors[-1]} saved")
    codes, starts = job.codes(), job.starts()
    repeated = [f"{floor} saved, {max(starts)} resumed" for floor in floors if max(starts, default=0) < floor]
    same = crash.files(folder / "run") == whole
    cells = ["; ".join(killed), ", ".join(map(str, starts)), " ".join(map(str, codes)), "yes" if same else "no"]
    return same and not repeated and set(codes) == {0}, cells


def joined_late(folder: Path) -> tuple[Job, list[int | None]]:
    """A job of one process, to which a second torchrun comes -> (the job, the exit codes of both)"""
    import ranks

    (folder / "workers").mkdir(parents=True)
    options = argparse.Namespace(processes=1, rendezvous="c10d")
    # without this variable the torchrun that comes late waits in vain for the address of the first (torch 2.13)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    places = [(folder, options, number, port) for port in [ranks.free_port()] for number in (0, 1)]
    flags = ("--rdzv-conf", "last_call_timeout=1")
    job = Job(folder, [agent(*places[0], flags, nodes="1:2")], 1)
    job.wait_until(lambda: job.last_checkpoint() >= 2)
    job.agents.append(agent(*places[1], flags, nodes="1:2"))
    return job, job.codes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="workers of each agent")
    parser.add_argument("--rendezvous", choices=RENDEZVOUS, default="c10d")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of all jobs; by default it is deleted at the end")
    options = parser.parse_args()
    rng, good = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        whole, seconds = undisturbed(folder / "whole", options)
        print("| job | killed | steps of its starts | exit codes | same files |\n|---|---|---|---|---|")
        for number in range(options.jobs):
            result, tries = None, 0
            while result is None:
                tries += 1
                place = folder / f"job-{number}-{tries}"
                result = disturbed(rng, place, options, whole, seconds, kills=1 + (number % 3 == 2))
            well, cells = result
            print(f"| {number} | {' | '.join(cells)} |", flush=True)
            good += well
    print(f"{good} of {options.jobs} jobs came back and ended with the same files")
    sys.exit(good != options.jobs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(Path(sys.argv[2]))
    else:
        main()
