"""`--tracker`: trackers get the metrics of each step. A tracker that fails is named once, and never ends a run."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from minirlhf.jobs.warnings import warner
from minirlhf.rewards.functions import FileReward
from minirlhf.seeing.trackers import Tracked, Tracker, check_tracker, open_tracker
from minirlhf.training.runs import flat


class FileTracker(FileReward):
    """A function (step, metrics) of a user's file.   name: FILE.py:FUNCTION."""

    kind, needed = "tracker", "function"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.guarded(lambda: self.function(step, metrics))

    def close(self) -> None:
        pass


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for a tracker that is unknown, not installed, or a function that is not there."""
    for name in names:
        FileTracker(name) if ".py" in name else check_tracker(name)


def on_metrics(names: Iterable[str], folder: Path, steps: int) -> Callable[[int, dict[str, float]], None]:
    """The function of a run of `steps` steps for `Run.on_metrics`: the doctor looks, trackers get the numbers."""
    warn, track = warner(folder, steps), Tracking(names, folder, steps)

    def call(step: int, metrics: dict[str, float]) -> None:
        warn(step, metrics)
        track(step, metrics)

    return call


class Tracking:
    """The trackers of a run. They open at its first step. A step is counted from 1, as in the names of checkpoints.

    steps: number in the whole run.
    """

    def __init__(self, names: Iterable[str], folder: Path, steps: int) -> None:
        self.names, self.folder, self.steps = names, folder, steps
        self.trackers: dict[str, Tracker] | None = None  # None: not open yet

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self.trackers is None:
            self.trackers = {}
            for name in self.names:
                with self._guarded(name):
                    self.trackers[name] = self._opened(name, step)
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                tracker.log(step + 1, dict(metrics))
                if step + 1 == self.steps:
                    tracker.close()

    def _opened(self, name: str, step: int) -> Tracker:
        if ".py" in name:
            return FileTracker(name)
        settings = flat(tomllib.loads((self.folder / "config.toml").read_text(encoding="utf-8")))
        return open_tracker(name, Tracked(self.folder, step, settings))

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """An error in the block names the tracker and drops it: it must not end a run."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.trackers.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            tqdm.write(f"--tracker {name}: gets no more numbers of {self.folder.name}: {reason}", file=sys.stderr)
