"""Processes for the programs of this folder: forks of one program that has imported torch already.

A fork starts in milliseconds; a fresh interpreter needs seconds to import torch. So the parent only forks and waits: it
must not compute with torch, because the threads of a computation do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from forks import free_port


def fork(world: int, function: Callable[..., None], *args: object, port: int | None = None) -> list[int]:
    """Start `function(*args)` in `world` processes, with the environment of torchrun -> their process ids."""
    port = port or free_port()
    sys.stdout.flush()
    return [_child(rank, world, port, function, args) for rank in range(world)]


def _child(rank: int, world: int, port: int, function: Callable[..., None], args: tuple) -> int:
    pid = os.fork()
    if pid:
        return pid
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(number) for name, number in sizes.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], seconds: float, grace: float | None = None) -> list[int | None]:
    """Exit codes; a negative code is a signal. A process that runs longer is killed and has the code None.

    grace: [s] after a process failed, the others are killed; None waits for them as long as for all.
    """
    codes: dict[int, int | None] = {}
    end = time.monotonic() + seconds
    while len(codes) < len(pids):
        late = time.monotonic() > end
        for pid in set(pids) - set(codes):
            if late:
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if found:
                codes[pid] = None if late else os.waitstatus_to_exitcode(status)
                if codes[pid] and grace is not None:
                    end = min(end, time.monotonic() + grace)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def run(world: int, function: Callable[..., None], *args: object, seconds: float = 600) -> None:
    """Run `function` in `world` processes to its end.   Raises: RuntimeError if a process fails or hangs."""
    codes = wait(fork(world, function, *args), seconds)
    if codes != [0] * world:
        raise RuntimeError(f"{function.__name__}{args}: exit codes {codes}; None is a process that was stopped")
