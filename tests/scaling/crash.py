"""Kill runs with SIGKILL at random instants, resume them, and compare their files with runs that nobody killed.

python tests/scaling/crash.py [--kills 25] [--seed 0] [--runs ppo/one,grpo/ddp-2] [--folder DIR]

Each second kill comes from outside, at a random time: it hits one process or all of them. The other kills come from
inside: a process dies at a random event of the file system (a file is opened to write, flushed or renamed, a folder is
made or deleted), so that most of these kills hit a checkpoint in the middle of its write. A third of the runs is killed
again while it resumes. A run with "/async" writes its checkpoints in a thread. A process that hangs prints the lines
where its threads stand. The exit code is 0 if every run resumes and ends with the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import grid
import ranks
import tiny

from minirlhf.runtime.distributed import process_group, rank

LAYOUTS = ("one", "ddp-2", "fsdp-2")
RUNS = [f"{kind}/{layout}{mode}" for mode in ("", "/async") for layout in LAYOUTS for kind in ("ppo", "grpo")]
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # of sys.addaudithook; os.unlink is os.remove
LIMIT = 120  # [s] for a resumed run
GRACE = 20  # [s] the other processes have so long to notice that one is gone


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the file-system event `event` of process `victim`, or `seconds` after the start if event is None.

    victim: None kills all processes.
    """

    victim: int | None
    seconds: float = 0.0
    event: int | None = None

    def __str__(self) -> str:
        who = "all" if self.victim is None else f"process {self.victim}"
        return f"{who}, " + (f"{self.seconds:.2f} s" if self.event is None else f"event {self.event}")


@dataclass
class Whole:
    """A run that nobody killed: its files, its seconds, and the number of events of each of its processes."""

    files: dict[str, bytes]
    seconds: float
    events: list[int]


def go_on(name: str, folder: Path, kill: Kill | None = None, count: Path | None = None) -> None:
    """Start or resume a run, in one of its processes: a checkpoint after each step, an evaluation every 2."""
    kind, layout, *mode = name.split("/")
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(0.8 * LIMIT)
    seen = _events(folder, kill.event if kill and kill.victim == int(os.environ["RANK"]) else None)
    with process_group(torch.device("cpu")), grid.using(grid.LAYOUTS[layout].strategy):
        tiny.go_on(kind, folder, resume=folder.exists(), save_every=1, async_save=bool(mode))
        if count:
            (count / str(rank())).write_text(str(len(seen)))


def _events(folder: Path, last: int | None) -> list[str]:
    """The events in `folder`, from now on; the process dies at the event number `last`."""
    seen: list[str] = []

    def notice(event: str, path: object) -> None:
        if str(path).startswith(str(folder)):
            seen.append(event)
            if len(seen) == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        if event in EVENTS and not (event == "open" and _reads(arguments)):
            notice(event, arguments[0])

    sys.addaudithook(audit)
    fsync = os.fsync
    os.fsync = lambda handle: notice("fsync", os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    return seen


def _reads(arguments: tuple) -> bool:
    _, mode, flags = arguments
    return mode in ("r", "rb") or (mode is None and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def files(folder: Path) -> dict[str, bytes]:
    """The files that must be equal: the last checkpoint, the final model, metrics and samples. And no leftovers."""
    parts = [*(folder / "checkpoints" / "step-8").rglob("*"), *(folder / "model").rglob("*")]
    parts += [folder / "metrics.jsonl", folder / "samples.jsonl", *folder.rglob(".*.tmp")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in parts if path.is_file()}


def whole(name: str, folder: Path) -> Whole:
    count = folder / "events"
    count.mkdir(parents=True)
    start = time.monotonic()
    ranks.run(world(name), go_on, name, folder / "run", None, count)
    seconds = time.monotonic() - start
    events = [int((count / str(number)).read_text()) for number in range(world(name))]
    return Whole(files(folder / "run"), seconds, events)


def world(name: str) -> int:
    return grid.LAYOUTS[name.split("/")[1]].world


def drawn(random: random.Random, name: str, run: Whole, outside: bool) -> Kill:
    if outside:
        return Kill(random.choice([None, *range(world(name))]), run.seconds * random.random())
    victim = random.choices(range(world(name)), weights=run.events)[0]
    return Kill(victim, event=random.randint(1, run.events[victim]))


def killed(name: str, folder: Path, kill: Kill) -> bool:
    """Run until the kill -> False if the run ended before."""
    pids = ranks.fork(world(name), go_on, name, folder, kill)
    if kill.event is None:
        time.sleep(kill.seconds)
        for pid in pids if kill.victim is None else [pids[kill.victim]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return -signal.SIGKILL in ranks.wait(pids, 60, GRACE)


def state_of(folder: Path) -> tuple[str, str]:
    """(the last complete checkpoint, whether a write was under way) of a killed run."""
    steps = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")]
    halves = [path for path in folder.rglob(".*.tmp")]
    return (f"step {max(steps)}" if steps else "none"), "yes" if halves else "no"


def trial(random: random.Random, name: str, run: Whole, folder: Path, outside: bool) -> tuple[bool, str]:
    """Kill a run, perhaps twice, and resume it -> (its files are those of the whole run, its line of the table)."""
    kill = drawn(random, name, run, outside)
    while not killed(name, folder, kill):
        shutil.rmtree(folder)
        kill = drawn(random, name, run, outside)
    kills, (last, inside) = str(kill), state_of(folder)
    if random.random() < 1 / 3:
        again = drawn(random, name, run, not outside)
        kills += f"; {again}" if killed(name, folder, again) else ""
    codes = ranks.wait(ranks.fork(world(name), go_on, name, folder), LIMIT)
    found = files(folder)
    same = found == run.files
    wrong = sorted(path for path in found.keys() | run.files.keys() if found.get(path) != run.files.get(path))
    resumed = "yes" if codes == [0] * len(codes) else f"exit codes {codes}"
    cells = [name, kills, last, inside, resumed, "yes" if same else " ".join(wrong)[:200]]
    return same and resumed == "yes", "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default=",".join(RUNS), help="with commas between them; killed in turns")
    parser.add_argument("--folder", type=Path, help="of all runs; by default it is deleted at the end")
    options = parser.parse_args()
    rng, good = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        names = options.runs.split(",")[: options.kills]
        wholes = {name: whole(name, folder / "whole" / name) for name in names}
        print("| run | killed | last checkpoint | in a write | resumes | same files |\n|---|---|---|---|---|---|")
        for number in range(options.kills):
            name = names[number % len(names)]
            # kills from outside and from inside take turns, and each run gets both kinds
            outside = (number + number // len(names)) % 2 == 0
            same, line = trial(rng, name, wholes[name], folder / f"run-{number}", outside)
            print(line, flush=True)
            good += same
    print(f"{good} of {options.kills} killed runs resumed and ended with the same files")
    sys.exit(good != options.kills)


if __name__ == "__main__":
    main()
