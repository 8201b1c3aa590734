"""Damage checkpoints in slices in many ways, and resume them in two processes: all end, with one line and exit code 2.

python tests/scaling/damaged.py [--only NAME,NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import grid
import ranks
import tiny

from minirlhf.errors import exits_cleanly
from minirlhf.manifest import read_manifest, write_manifest
from minirlhf.runtime.distributed import process_group

SHARD = "shard-00001-of-00002.safetensors"
LIMIT = 100  # [s]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def change_state(folder: Path, change: Callable[[dict], object]) -> None:
    """A state of other types in a checkpoint whose checksums are right."""
    state, tensors = json.loads((folder / "state.json").read_text()), read_manifest(folder)["tensors"]
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").unlink()
    write_manifest(folder, step=state["step"], tensors=tensors)


# name -> (damage of a checkpoint, a part of the message)
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    "corrupted shard": (lambda folder: flip(folder / SHARD), f"the checksum of {SHARD} differs"),
    "shortened shard": (lambda folder: cut(folder / SHARD), f"{SHARD} has"),
    "truncated manifest": (lambda folder: cut(folder / "manifest.json"), "manifest.json is damaged"),
    "manifest: list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "manifest: text": (lambda folder: (folder / "manifest.json").write_text('"a"'), "manifest.json is damaged"),
    "manifest: huge": (lambda folder: huge(folder / "manifest.json"), "manifest.json is damaged (it has more than"),
    "manifest: gone": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "state: update": (
        lambda folder: change_state(folder, lambda state: state["trainer"]["optimizer"].update(update="3")),
        "trainer/optimizer/update must be a whole number",
    ),
    "state: optimizer": (
        lambda folder: change_state(folder, lambda state: state["trainer"].update(optimizer=[])),
        "needed the state of a run",
    ),
    "state: step": (
        lambda folder: change_state(folder, lambda state: state.update(done=None)),
        "needed the state of this run's algorithm",
    ),
    "another model": (lambda folder: None, "checkpoint of another model"),
    "another model by ddp": (lambda folder: None, "checkpoint of another model"),
    "another algorithm": (lambda folder: None, "value_head.bias of policy is not in the checkpoint"),
}


def resume() -> None:
    """One process of a resumed run, with the exit code of a program."""
    try:
        exits_cleanly(go_on)()
    except SystemExit as error:
        sys.stderr.flush()
        os._exit(error.code)


def go_on() -> None:
    folder, name = Path(os.environ["RUN"]), os.environ["DAMAGE"]
    strategy = None if name.endswith("by ddp") else {"mode": "fsdp"}
    if name.startswith("another model"):
        make, tiny.sft = tiny.sft, lambda dtype, steps: make(dtype, steps, shape={"intermediate_size": 48})
    with process_group(torch.device("cpu")), grid.using(strategy):
        tiny.go_on("ppo" if name == "another algorithm" else "sft", folder, resume=True)


def start(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")), grid.using({"mode": "fsdp"}):
        tiny.stop_at(4, folder)


def trial(name: str, whole: Path, folder: Path) -> tuple[bool, str]:
    """-> (the processes end as they must, a line of the table)."""
    damage, expected = DAMAGE[name]
    shutil.copytree(whole, folder)
    damage(max((folder / "checkpoints").iterdir()))
    os.environ |= {"RUN": str(folder), "DAMAGE": name}
    began, output = time.monotonic(), folder.with_suffix(".txt")
    with output.open("w") as file:  # the forks write both streams into this file
        kept = [os.dup(stream) for stream in (1, 2)]
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        pids = ranks.fork(2, resume)
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
    codes = ranks.wait(pids, LIMIT)
    lines = [line for line in output.read_text().splitlines() if "error" in line or "Traceback" in line]
    good = codes == [2, 2] and len(lines) == 1 and expected in lines[0]
    said = " / ".join(lines).replace(str(folder), "RUN")[:220]
    return good, f"| {name} | {codes} | {time.monotonic() - began:.1f} | {'yes' if good else 'NO'} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(DAMAGE))
    names = parser.parse_args().only.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        ranks.run(2, start, folder / "whole")
        print("| damage | exit codes | seconds | as it must | message |\n|---|---|---|---|---|")
        good = 0
        for number, name in enumerate(names):
            fine, line = trial(name, folder / "whole", folder / f"run-{number}")
            print(line, flush=True)
            good += fine
    print(f"{good} of {len(names)} damaged checkpoints were named by one line, and all processes ended")
    sys.exit(good != len(names))


if __name__ == "__main__":
    main()
