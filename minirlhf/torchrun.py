"""A program that torchrun started: an error at its end is shown once for all processes, and a restart is known.

torchrun answers a process that ends with an error by a report of 34 lines, with a traceback through its own files. An
exit code, `record`, an error file, SIGTERM and SIGINT change nothing about the report. Only a signal without a handler
ends torchrun in silence.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 5.0  # seconds to wait for the other processes to end with the same error

agreed: bool | None = None  # whether this start is a restart; None until the processes have met


def end(message: str) -> None:
    """Print a last message on stderr, once for all processes that end with it; then leave together with them."""
    show_once(message)
    leave_together(message)


def show_once(message: str) -> None:
    """Print a message on stderr, once for all processes that show it. Without torchrun every process prints it."""
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    folder = _meeting(message)
    if folder is None or _makes(folder / "shown"):
        print(f"[rank {rank}] {message}" if ranks != "1" else message, file=sys.stderr, flush=True)


def leave_together(message: str, restart: bool = False) -> None:
    """End torchrun without its report if all processes end because of this message; else return.

    The processes meet in the folder that torchrun makes for error files: each makes a file there, named by its rank.
    torchrun lives and reports if a process goes on, because torchrun then has to end that process, and if the processes
    run on several machines. With `restart` it also lives if it may start the processes again.
    """
    if restart and os.environ.get("TORCHELASTIC_RESTART_COUNT") != os.environ.get("TORCHELASTIC_MAX_RESTARTS"):
        return
    launcher, rank, ranks = os.getppid(), os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    folder = _meeting(message)
    if folder is None:
        return
    (folder / rank).touch()
    if os.environ.get("LOCAL_WORLD_SIZE") != ranks:
        return
    sys.stdout.flush()
    if _wait(lambda: len([path for path in folder.iterdir() if path.name != "shown"]) == int(ranks), PATIENCE):
        if rank == "0":
            os.kill(launcher, signal.SIGUSR2)  # torchrun may handle SIGUSR1: see docs/multi_node.md#signals
        _wait(lambda: os.getppid() != launcher, 1.0)  # a process that ended earlier would start the report


def restarted() -> bool:
    """True if torchrun has started processes of the job before.

    torchrun counts a restart after a failure, and none in which other machines join or leave. So the processes of each
    start leave a note in torchrun's folder. Several processes take the answer on which they agreed; see `settle`.
    """
    if agreed is not None:
        return agreed
    before = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" or _finds_note()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _leave_note()
    return before


def settle(answer: bool) -> None:
    """Make this the answer of `restarted` in this process. All processes of this start must have looked before."""
    global agreed
    agreed = answer
    _leave_note()


@functools.cache  # later the process would find its own note
def _finds_note() -> bool:
    note = _note()
    return note is not None and note.exists()


def _leave_note() -> None:
    if note := _note():
        with contextlib.suppress(OSError):
            note.touch()


def _note() -> Path | None:
    attempt = _attempt()
    return attempt and attempt.parent / "started"


def _attempt() -> Path | None:
    """The folder that torchrun made for the error files of this start. None without torchrun or without this folder."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)
    return Path(error_file).parent.parent if error_file != os.devnull and _is_torchrun(os.getppid()) else None


def _meeting(message: str) -> Path | None:
    """The folder of the processes that end with this message. None without torchrun, or if the folder is gone."""
    attempt = _attempt()
    if attempt is None:
        return None
    folder = attempt / hashlib.sha256(message.encode(errors="replace")).hexdigest()[:16]
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def _makes(path: Path) -> bool:
    """True for the one process that makes the file. A process that cannot make it counts as this process."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _is_torchrun(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    except OSError:  # macOS has no /proc, but ps
        if not shutil.which("ps"):
            return False
        command = ["ps", "-o", "command=", "-p", str(process)]
        words = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return any(Path(word).name == "torchrun" or word == "torch.distributed.run" for word in words[:4])


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """True as soon as the condition holds; False if it does not hold within that time."""
    last = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > last:
            return False
        time.sleep(0.02)
    return True
