"""A clean end of a run on SIGINT (Ctrl-C) or SIGTERM."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from minirlhf.runtime import ending

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm can send SIGUSR1 before the time of a job ends


@contextlib.contextmanager
def caught_signals(where: Callable[[], str]) -> Iterator[list[int]]:
    """Yield a list that gets the number of the first signal, so that the run can end after its step. A second signal
    ends the run at once. At the end the previous handlers are back.

    where: the work of the run, such as "ppo: step 7", for the message of an error in one of several processes.
    """
    received: list[int] = []
    first = math.inf

    def on_signal(number: int, frame: Any) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        if time.monotonic() - first > 2:  # under torchrun one Ctrl-C arrives twice within moments
            raise KeyboardInterrupt
        received.append(number)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # outside the main thread Python forbids new handlers
        previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    ending.step = where
    try:
        yield received
    finally:
        ending.step = None
        for number, handler in previous.items():
            signal.signal(number, handler)
