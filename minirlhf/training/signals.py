"""A clean end of a run on SIGINT (Ctrl-C), SIGTERM or SIGUSR1. Only a second Ctrl-C ends it without a checkpoint."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from minirlhf.runtime import ending

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm can send SIGUSR1 before the time of a job ends
ECHO = 2  # seconds in which one Ctrl-C under torchrun arrives twice: from the terminal and from torchrun


@contextlib.contextmanager
def caught_signals(where: Callable[[], str]) -> Iterator[list[int]]:
    """Yield a list that gets the numbers of the signals, so that the run can save and end after its step.

    A second SIGINT ends the run at once, because a person sends it. A second SIGTERM or SIGUSR1 does not: a cluster
    sends several signals before it kills the process, and the run needs this time to save. At the end the previous
    handlers are back.

    where: the work of the run, such as "ppo: step 7", for the message of an error in one of several processes.
    """
    received: list[int] = []
    interrupted = math.inf  # the time of the first SIGINT

    def on_signal(number: int, frame: Any) -> None:
        nonlocal interrupted
        if number == signal.SIGINT:
            interrupted = min(interrupted, time.monotonic())
            if time.monotonic() - interrupted > ECHO:
                raise KeyboardInterrupt
        received.append(number)

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # outside the main thread Python forbids new handlers
        previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    ending.step = where
    try:
        yield received
    except (Exception, GeneratorExit):  # an error in the body of a `for` loop closes the generator of the run
        raise  # its message names this run, so `where` stays
    except BaseException:
        ending.step = None
        raise
    else:
        ending.step = None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
