"""Processes that fail, hang or never come: their messages, exit codes and seconds.

python tests/scaling/failures.py FOLDER [NAME ...]

Each process writes NAME-RANK.txt (its stderr) and NAME-RANK.json (its exit code and seconds). A process that another
one killed writes no .json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import ranks
import torch
import torch.distributed as dist

from minirlhf.errors import InputError, exits_cleanly
from minirlhf.runtime import ending, rendezvous
from minirlhf.runtime.distributed import all_sum, process_group, rank
from minirlhf.runtime.parallel import strategy
from minirlhf.training import saving, shards
from minirlhf.training.signals import caught_signals

CPU = torch.device("cpu")


def steps(at_step_3: Callable[[], None]) -> None:
    """Ten steps with a collective each. Rank 1 does something else in step 3."""
    with process_group(CPU):
        done = [0]
        with caught_signals(lambda: f"runs/mine/ppo, step {done[0]}"):
            for done[0] in range(10):
                if done[0] == 3 and rank() == 1:
                    at_step_3()
                all_sum(torch.ones(1))


def raises(error: Exception) -> None:
    raise error


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def split_in_three() -> None:
    with process_group(CPU), strategy.using(strategy.Strategy("hsdp", replicas=3)):
        strategy.mesh_of(CPU)


def full_disk() -> None:
    """Rank 1 can write neither its shard of a checkpoint nor the receipt that would say so."""
    with process_group(CPU):
        if rank() == 1:
            shards.write_shard = lambda *_: raises(OSError(28, "No space left on device"))
        config, folder = SimpleNamespace(async_save=False, export=False, base=None), Path("runs/mine/ppo")
        run = SimpleNamespace(config=config, copies=None, folder=folder, trainer=SimpleNamespace(models={}))
        run.files = run.tokenizer = None
        state = {"step": 1, "trainer": {f"moments of rank {rank()}": torch.ones(2)}}
        saving.write_checkpoint(run, Path(sys.argv[1]) / "step-1", state, lambda: None)


CASES: dict[str, Callable[[], None]] = {
    "fault": lambda: steps(lambda: raises(KeyError("weight"))),
    "input": lambda: steps(lambda: raises(InputError("rows.jsonl: line 3: needed a prompt, got nothing"))),
    "hangs": lambda: steps(lambda: time.sleep(60)),
    "killed": lambda: steps(stop_itself),
    "hsdp": split_in_three,
    "disk": full_disk,
    "alone": lambda: steps(lambda: None),  # only rank 0 comes
    "no-first": lambda: steps(lambda: None),  # only rank 1 comes
    "port": lambda: steps(lambda: None),  # another program has the port of rank 0
    "again": lambda: steps(lambda: None),  # a restart: the store has the words of killed processes; the last case
}
COMERS = {"alone": [0], "no-first": [1]}
PATIENCE = 60  # [s] on a busy machine, of the cases that do not wait until their time is over
TIMEOUT = dict.fromkeys(("hangs", "alone", "no-first", "port", "disk"), 5)
GRACE = {"hangs": 2, "killed": 2}


def run(name: str, folder: Path) -> None:
    """A process of a case; it ends as a program under Python ends."""
    if int(os.environ["RANK"]) not in COMERS.get(name, [0, 1]):
        return
    file = folder / f"{name}-{os.environ['RANK']}"
    os.dup2(os.open(file.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    os.environ["MINIRLHF_TIMEOUT"] = str(TIMEOUT.get(name, PATIENCE))
    ending.GRACE = GRACE.get(name, PATIENCE)
    start, code = time.monotonic(), 0
    try:
        exits_cleanly(CASES[name])()
    except SystemExit as end:
        code = end.code
    except Exception as error:
        traceback.print_exception(error)
        code = 1
    file.with_suffix(".json").write_text(json.dumps({"code": code, "seconds": time.monotonic() - start}))
    sys.stderr.flush()
    os._exit(code)


def write_and_die() -> None:
    """A process that is killed while it waits for the others, as torchrun's restart finds it."""
    store = dist.PrefixStore("minirlhf", rendezvous.root_store(rendezvous.read_place(), 5.0))
    if os.environ["RANK"] == "1":
        store.set("word/1", "the word of a killed process")
    else:
        store.add("starts", 1)
        store.set("1/here/1", json.dumps({"host": "gone", "device": "cpu", "restarted": False}))
    stop_itself()


def started(name: str, folder: Path, stack: ExitStack) -> list[int]:
    """Start the processes of a case -> their process ids."""
    port = ranks.free_port()
    if name == "port":
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    if name == "again":
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        stack.callback(store.num_keys)  # the store lives until all processes have ended
        ranks.wait(ranks.fork(2, write_and_die, port=port), 10)
    return ranks.fork(2, run, name, folder, port=port)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    with ExitStack() as stack:
        processes = {name: started(name, folder, stack) for name in names}
        for name, pids in processes.items():
            ranks.wait(pids, 120, grace=0 if name == "hangs" else None)


if __name__ == "__main__":
    main()
