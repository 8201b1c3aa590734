"""A job that is still going on: `Followed(folder).look()` reads the new lines of its files, and only these.

A folder may be half-written: a missing file has no lines yet, a broken line is skipped, and the last line waits for its
end. Memory and each look are bounded, however long the run is.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.seeing.reading import MOST_LINE, ROWS, row_of, run_folders
from minirlhf.training.runs import STARTED, is_complete
from minirlhf.training.stage_plan import planned_stages

LOCK = ".lock"  # as in training/lock.py; to import that file would load torch
MOST_BYTES = 64 << 20  # of a file of numbers at the first look; the lines before them are not read
MOST_SAMPLES = 1 << 20  # bytes of samples.jsonl at the first look
MOST_EVALUATIONS = 200
MOST_RUNS = 20
RECENT = 100  # steps, for the time of a step


class Growing:
    """The lines of a file that grows, each once. most: bytes before its end where the first look begins."""

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        self.path, self.most = path, most
        self.at: int | None = None  # the byte after the last line that was read

    def lines(self) -> Iterator[bytes]:
        """The whole lines that came since the last call. A file that was cut is read from its beginning again."""
        with suppress(OSError), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if self.at is None and size > self.most:
                file.seek(size - self.most)
                file.readline(MOST_LINE)  # the rest of a line
                self.at = file.tell()
            self.at = self.at if self.at is not None and self.at <= size else 0
            file.seek(self.at)
            while line := file.readline(MOST_LINE):
                if not line.endswith(b"\n") and len(line) < MOST_LINE:
                    break  # half-written
                self.at += len(line)
                yield line

    def rows(self) -> Iterator[dict[str, Any]]:
        return (row for line in self.lines() if (row := row_of(line)))


class FollowedRun:
    """The numbers of one stage, as far as its files have them. A step is counted from 1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.resolve().name
        self.step = 0
        self.planned: int | None = None  # steps
        self.started = ""  # the time of the first line in log.txt
        self.finished = False
        self.last: dict[str, Any] = {}  # metrics of the last step
        self.evaluations: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MOST_EVALUATIONS)
        self.samples: list[dict[str, Any]] = []  # of the last step with samples
        self.seconds = 0.0  # in all steps that were read
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of steps
        self.memory: dict[str, int] = {}  # peaks in MB: memory_mb, gpu_memory_mb
        names = ("metrics.jsonl", "timings.jsonl", "log.txt")
        self._metrics, self._timings, self._log = (Growing(folder / name) for name in names)
        self._samples = Growing(folder / "samples.jsonl", MOST_SAMPLES)

    def look(self) -> None:
        for line in self._log.lines():
            text = line[:200].decode("utf-8", errors="replace")
            if match := STARTED.fullmatch(text):
                self.planned, self.started = int(match[1]), self.started or text[:19]
        for row in self._metrics.rows():
            self._add_metrics(row)
        for row in self._timings.rows():
            self._add_timings(row)
        for row in self._samples.rows():
            if self.samples and self.samples[-1]["step"] != row["step"]:
                self.samples = []
            if len(self.samples) < ROWS:
                self.samples.append(row)
        self.finished = is_complete(self.folder / "model")

    def _add_metrics(self, row: dict[str, Any]) -> None:
        self.step = row["step"] + 1
        while self.evaluations and self.evaluations[-1][0] >= self.step:  # the run went back to a checkpoint
            self.evaluations.pop()
        self.last = {name: value for name, value in row.items() if name != "step"}
        if any(name.startswith("eval/") for name in self.last):
            self.evaluations.append((self.step, self.last))

    def _add_timings(self, row: dict[str, Any]) -> None:
        if row["step"] == 0:
            self.seconds = 0.0
        if type(seconds := row.get("seconds")) in (int, float) and 0 <= seconds < 1e9:
            self.seconds += seconds
            self.recent.append(seconds)
        for name in ("memory_mb", "gpu_memory_mb"):
            if type(row.get(name)) is int:
                self.memory[name] = row[name]

    @property
    def seconds_of_step(self) -> float | None:
        """The mean over the last steps, their evaluations included."""
        return sum(self.recent) / len(self.recent) if self.recent else None

    @property
    def seconds_left(self) -> float | None:
        """None before the first step, or without a planned number of steps."""
        if self.planned is None or not self.recent:
            return None
        return max(0, self.planned - self.step) * self.seconds_of_step

    @property
    def silence(self) -> float:
        """Seconds since the last line of metrics. 0 without such a line."""
        try:
            return max(0.0, time.time() - (self.folder / "metrics.jsonl").stat().st_mtime)
        except OSError:
            return 0.0


class Followed:
    """A run, or the runs of a job in the order of their starts.   Raises: InputError if it is no folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{shown(str(folder))}: needed the folder of a run or a job, found none; check the path")
        self.folder = folder
        self.stages: dict[str, float | None] = {}  # planned, see training/stage_plan.py
        self.runs: list[FollowedRun] = []

    def look(self) -> None:
        """Read all new lines.

        Raises: InputError for more than 20 runs, and for a folder without a run that nobody works in.
        """
        self.stages = planned_stages(self.folder)
        known = {run.folder for run in self.runs}
        self.runs += [FollowedRun(path) for path in run_folders(self.folder) if path not in known]
        for run in self.runs:
            run.look()
        self.runs.sort(key=lambda run: (not run.started, run.started))
        name = shown(str(self.folder))
        if not self.runs and not self.going_on:
            raise InputError(f"{name}: needed a folder with a run in it, found none; check the path")
        if len(self.runs) > MOST_RUNS:
            raise InputError(f"{name}: needed one run or job, found {len(self.runs)} runs; name one of them")

    @property
    def going_on(self) -> bool:
        """True if a process works in the folder. A process on another machine is believed."""
        return any(_holds(path / LOCK) for path in (self.folder, *(run.folder for run in self.runs)))


def _holds(path: Path) -> bool:
    """True if the process that wrote this lock file lives. Asking for the lock itself could refuse it to a new job."""
    try:
        words = path.read_bytes()[:200].decode(errors="replace").split()
    except OSError:
        return False
    if len(words) != 4 or words[0] != "process" or not words[1].isdecimal() or words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return True
