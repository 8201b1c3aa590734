"""The end of a program that torchrun started: an error is shown once for all processes.

torchrun answers a process that ends with an error by a report of 34 lines, with a traceback through its own files. An
exit code, `record`, an error file, SIGTERM and SIGINT change nothing about the report. Only a signal without a handler
ends torchrun in silence.
"""

from __future__ import annotations

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


def end(message: str) -> None:
    """Print a last message on stderr, once for all processes that end with it; then leave together with them.

    Without torchrun every process prints it.
    """
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    folder = _meeting(message)
    if folder is None or _makes(folder / "shown"):
        print(f"[rank {rank}] {message}" if ranks != "1" else message, file=sys.stderr, flush=True)
    leave_together(message)


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
            os.kill(launcher, signal.SIGUSR1)
        _wait(lambda: os.getppid() != launcher, 1.0)  # a process that ended earlier would start the report


def _meeting(message: str) -> Path | None:
    """The folder of the processes that end with this message. None without torchrun, or if the folder is gone."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file or not _is_torchrun(os.getppid()):
        return None
    folder = Path(error_file).parent.parent / hashlib.sha256(message.encode(errors="replace")).hexdigest()[:16]
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
