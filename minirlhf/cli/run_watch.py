"""`minirlhf run watch`: follow a run from another terminal."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from minirlhf.seeing.following import Followed
from minirlhf.seeing.status import WIDTH, Rows, end, status

SECONDS = 1.0  # between two looks on a terminal
PLAIN_SECONDS = 60.0  # between two states on a pipe


def watch(folder: Path, once: bool = False) -> None:
    """Print the table of evaluations as it grows, with the present state below it, until the job has ended.

    once: print both once.
    """
    job, rows = Followed(folder), Rows()
    job.look()
    if once or not job.going_on:
        print(*rows.new(job), *status(job), *([] if job.going_on else [end(job)]), sep="\n")
        return
    try:
        _follow(job, rows)
    except KeyboardInterrupt:
        print("no longer watched; the job goes on")
    else:
        print(end(job))


def _follow(job: Followed, rows: Rows) -> None:
    screen, going_on = Screen(), True
    while going_on:
        going_on = job.going_on  # asked before the look, so that no line is missed
        job.look()
        screen.show(rows.new(job), status(job, screen.width))
        if going_on:
            time.sleep(SECONDS)


class Screen:
    """Lines that stay, and below them a state that the next state replaces. On a pipe a new state is printed rarely."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns - 1)
        self.state: list[str] = []  # the lines below
        self.last = -PLAIN_SECONDS

    def show(self, lines: list[str], state: list[str]) -> None:
        if self.is_terminal:
            back = f"\x1b[{len(self.state)}A\x1b[J" if self.state else ""
            if lines or state != self.state:
                print(back, *[f"{line}\n" for line in [*lines, *state]], sep="", end="", flush=True)
            self.state = state
            return
        now = time.monotonic()
        if now >= self.last + PLAIN_SECONDS:
            lines, self.last = [*lines, *state], now
        print(*[f"{line}\n" for line in lines], sep="", end="", flush=True)
