"""Finished and unfinished runs, read from their folders. Needs no torch, so that `minirlhf run` answers at once."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.manifest import missing

COMMON = ("model", "lora", "run")  # tables of config.toml that belong to no single stage
STARTED = re.compile(r"\S+ \S+  (?:started|resumed) at step \d+ of (\d+)\n?")
# Metrics of which less is better, by the last part of their names; of all others more is better.
LESS_IS_BETTER = ("loss", "kl", "perplexity", "bits_per_byte", "nll", "error")


@dataclass
class Curve:
    """One metric over the steps of a run. A step is counted as in the names of checkpoints: 1 is after the first."""

    last: float
    lowest: tuple[float, int]  # (value, step)
    highest: tuple[float, int]

    def best(self, mode: str) -> tuple[float, int]:
        return self.highest if mode == "max" else self.lowest


@dataclass
class FoundRun:
    """The content of a run's folder."""

    folder: Path
    settings: dict[str, Any]  # full name, such as "ppo.lr" -> value in config.toml
    kind: str  # the stage's own table: "sft", "reward_model", "ppo"
    planned: int | None = None  # steps, by log.txt; early stopping makes fewer
    steps: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.jsonl with an evaluation
    seconds: float | None = None  # None without timings.jsonl
    memory_mb: int | None = None
    checkpoints: list[int] = field(default_factory=list)  # steps of the complete checkpoints
    incomplete: list[str] = field(default_factory=list)  # names of other folders among the checkpoints
    best: int | None = None  # step of the checkpoint that the run itself has found the best
    finished: bool = False  # model/ is complete


def runs_below(folder: Path) -> tuple[list[FoundRun], list[str]]:
    """All runs in a folder or below it -> (runs, a line for each folder that is no whole run).

    Raises: InputError if it is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: needed a folder with runs in it, found none; check the path")
    runs, damaged = [], []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # an evaluation has a config.toml too, so that name alone does not mark a run
        if not {"metrics.jsonl", "log.txt"} & set(files) and not ("config.toml" in files and "checkpoints" in folders):
            continue
        folders.clear()  # checkpoints and models hold no runs
        try:
            runs.append(read_run(Path(path)))
        except InputError as error:
            damaged.append(str(error))
    return runs, damaged


def read_run(folder: Path) -> FoundRun:
    """Raises: InputError, naming the file and line, if a file is missing or broken."""
    try:
        document = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder / 'config.toml'}: needed the settings of a run, got: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'config.toml'}: needed the settings of a run, got broken TOML: {error}") from None
    tables = [name for name, value in document.items() if isinstance(value, dict)]
    kind = next((name for name in tables if name not in COMMON), "-")
    found = FoundRun(folder, flat(document), kind)
    for row in _rows(folder / "metrics.jsonl"):
        _add(found, row)
    if (folder / "timings.jsonl").exists():
        timings = list(_rows(folder / "timings.jsonl"))
        found.seconds = math.fsum(row["seconds"] for row in timings if _is_number(row.get("seconds")))
        found.memory_mb = max((row["memory_mb"] for row in timings if _is_number(row.get("memory_mb"))), default=None)
    if (folder / "log.txt").is_file():
        with (folder / "log.txt").open(encoding="utf-8", errors="replace") as log:
            lengths = [int(match[1]) for line in log if (match := STARTED.fullmatch(line[:200]))]
        found.planned = lengths[-1] if lengths else None
    _add_checkpoints(found)
    found.finished = is_complete(folder / "model")
    return found


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """{"seed": 0, "ppo": {"lr": 1}} -> {"seed": 0, "ppo.lr": 1}"""
    settings = {}
    for name, value in document.items():
        settings |= {f"{name}.{key}": x for key, x in value.items()} if isinstance(value, dict) else {name: value}
    return settings


def samples_of(folder: Path, step: int | None = None) -> tuple[list[dict[str, Any]], set[int]]:
    """-> (the rows of samples.jsonl of one step, all steps that have rows).   step: None takes the last."""
    rows: list[dict[str, Any]] = []
    steps: set[int] = set()
    if (folder / "samples.jsonl").exists():
        for row in _rows(folder / "samples.jsonl"):
            steps.add(row["step"])
            if step in (None, row["step"]):
                rows = [*rows, row] if rows and rows[-1]["step"] == row["step"] else [row]
    return rows, steps


def differences(runs: Sequence[FoundRun]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, for the settings that differ. None: the file leaves the setting out."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names if name not in ("output", "resume")}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def better(metric: str) -> str:
    """ "max" or "min": which end of a metric is the good end, by its name."""
    return "min" if metric.rpartition("/")[2].endswith(LESS_IS_BETTER) else "max"


def is_complete(folder: Path) -> bool:
    """As `manifest.is_complete`; a folder that cannot be read is incomplete."""
    try:
        return missing(folder) is None
    except OSError:
        return False


def _add(run: FoundRun, row: dict[str, Any]) -> None:
    """Add a row of metrics.jsonl. The row of step k is written after k + 1 steps."""
    run.steps = row["step"] + 1
    numbers = {name: value for name, value in row.items() if name != "step" and _is_number(value)}
    for name, value in numbers.items():
        curve = run.curves.setdefault(name, Curve(value, (value, run.steps), (value, run.steps)))
        curve.last = value
        curve.lowest = min(curve.lowest, (value, run.steps))
        if value > curve.highest[0]:
            curve.highest = value, run.steps
    if any(name.startswith("eval/") for name in numbers):
        run.evaluations.append(row)


def _add_checkpoints(run: FoundRun) -> None:
    top = run.folder / "checkpoints"
    names = sorted(path.name for path in top.iterdir() if not path.name.startswith(".")) if top.is_dir() else []
    for name in names:
        is_step = re.fullmatch(r"step-\d{1,18}", name) and is_complete(top / name)
        run.checkpoints += [int(name[5:])] if is_step else []
        run.incomplete += [] if is_step else [name]
    run.checkpoints.sort()
    try:
        state = json.loads((top / f"step-{run.checkpoints[-1]}" / "state.json").read_text(encoding="utf-8"))
        run.best = int(state["best"]["step"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        run.best = None  # no checkpoint yet, or the run has no evaluation


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that a run writes line by line. A crash may cut the last line short; it is left out.

    Raises: InputError for a file that cannot be read and for any other broken line.
    """
    last, number = -1, 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    if type(row["step"]) is not int or not last <= row["step"] < 2**60 or row["step"] < 0:
                        raise ValueError(f"step {shown(row['step'], 20)} after step {last}")
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    if line.endswith("\n"):
                        raise InputError(
                            f"{path}: line {number}: needed a row with a step, got {shown(error)}"
                        ) from None
                    return
                last = row["step"]
                yield row
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or f"broken UTF-8 after line {number}"
        raise InputError(f"{path}: needed the lines of a run, got: {got}") from None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
