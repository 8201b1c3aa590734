"""The progress of a run on stderr: a bar on a terminal, and on a pipe a line now and then.

Both show the number of the stage in its job, the time that is left of the stage and, if stages come after it, of the
job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from minirlhf.columns import beginning, printable
from minirlhf.runtime.distributed import shows
from minirlhf.training.stage_plan import job_seconds_left, planned_stages

BAR = "{desc}: |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{job}{postfix}]"  # fits 80 columns; elapsed<stage<job
LEAST, PART = 10.0, 0.05  # a line on a pipe: not before this many seconds, and this part of the time so far


class Bar(Protocol):
    def set_postfix(self, metrics: dict[str, str], refresh: bool) -> None: ...
    def update(self) -> None: ...


@contextmanager
def progress(run: Any) -> Iterator[Bar]:
    """The bar of a `Run` within its loop. After the last step a line of trends ends the table of evaluations."""
    place = Place(run.folder, run.step, len(run.batches))
    kind = Silent if not shows() else TerminalBar if sys.stderr.isatty() else Lines
    with kind(place) as bar:
        yield bar
    if shows() and run._journal and (trend := run._table.trend()):
        run._journal.show(trend)


class Place:
    """The place of a run in its job.   first: the number of steps that were done before this start."""

    def __init__(self, folder: Path, first: int, total: int) -> None:
        self.folder, self.first, self.total = folder, first, total
        self.stages = planned_stages(folder.parent)
        numbered = folder.name in self.stages and len(self.stages) > 1
        number = f"{list(self.stages).index(folder.name) + 1}/{len(self.stages)} " if numbered else ""
        self.title = beginning(number + printable(folder.name), 12)

    def left(self, step: int, seconds: float) -> tuple[float, str]:
        """-> (seconds left of the stage, time left of the job if it has later stages); `seconds` have passed."""
        pace = seconds / max(1, step - self.first)
        stage = pace * (self.total - step)
        job = job_seconds_left(self.stages, self.folder.name, pace * self.total, stage)
        has_more = step > self.first and job is not None and job > stage
        return stage, tqdm.format_interval(job) if has_more else ""


class TerminalBar(tqdm):
    def __init__(self, place: Place) -> None:
        self.place = place
        super().__init__(
            total=place.total, initial=place.first, desc=place.title, bar_format=BAR, mininterval=0.2, file=sys.stderr
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        found = super().format_dict
        job = self.place.left(found["n"], found["elapsed"])[1]
        return found | {"job": f"<{job}" if job else ""}


class Silent:
    """No bar."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def set_postfix(self, metrics: dict[str, str], refresh: bool) -> None:
        pass

    def update(self) -> None:
        pass


class Lines(Silent):
    """Plain lines for a log. The time between two lines grows with the time so far, so a long run has few of them."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.step, self.metrics = place.first, {}
        self.started = self.last = time.monotonic()

    def set_postfix(self, metrics: dict[str, str], refresh: bool) -> None:
        self.metrics = metrics

    def update(self) -> None:
        self.step += 1
        now = time.monotonic()
        seconds = now - self.started
        if self.step == self.place.total or now - self.last < max(LEAST, PART * seconds):
            return
        self.last = now
        left, job = self.place.left(self.step, seconds)
        spent, left = (tqdm.format_interval(x) for x in (seconds, left))
        numbers = "".join(f", {name}={value}" for name, value in self.metrics.items())
        steps, of_job = f"{self.step} of {self.place.total} steps", f", job {job}" if job else ""
        print(f"{self.place.title}: {steps}, {spent}, {left} left{of_job}{numbers}", file=sys.stderr, flush=True)
