"""Folders of runs and of pipelines, read for pictures.

A broken, half-written or missing file is no error: its readable part is taken, and a note names the rest. The memory is
bounded: long curves are kept in buckets, and of many samples only some steps are kept.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.seeing.series import Series
from minirlhf.training.runs import COMMON, STARTED, flat, is_complete

MOST_RUNS = 40  # that are held in memory together
MOST_LINE = 1 << 20  # bytes of a line; a longer line cannot be read
MOST_NAMES = 200  # of metrics
STEPS, ROWS = 24, 8  # of samples: steps (up to twice as many) and rows of a step
MOST_BYTES = 16 << 20  # of the samples that are kept


@dataclass
class SeenRun:
    """The content of a run's folder. A step is counted as in the names of checkpoints: 1 is after the first."""

    folder: Path
    name: str  # of the stage: the folder's
    kind: str = "-"  # the stage's own table in config.toml: "sft", "reward_model", "ppo"
    settings: dict[str, Any] = field(default_factory=dict)  # full name, such as "ppo.lr" -> value
    metrics: dict[str, Series] = field(default_factory=dict)
    timings: dict[str, Series] = field(default_factory=dict)
    samples: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)  # (step, its rows)
    sample_steps: int = 0  # number of steps with samples in the file
    planned: int | None = None  # steps, by log.txt
    started: str = ""  # the time of the first line in log.txt
    starts: int = 0  # 1 and the number of resumptions
    finished: bool = False  # model/ is complete
    notes: list[str] = field(default_factory=list)  # sentences about files that are missing, broken or thinned out

    @property
    def steps(self) -> int:
        return max((series.last[0] for series in self.metrics.values() if series.last), default=0)

    @property
    def seconds(self) -> float | None:
        """In all steps. None without timings."""
        return self.timings["seconds"].total() if "seconds" in self.timings else None


@dataclass
class SeenJob:
    """A folder that the user names: a run, or a pipeline of runs in the order of their starts."""

    folder: Path
    runs: list[SeenRun]
    summary: dict[str, Any]  # summary.json; empty without it
    notes: list[str]


def read_job(folder: Path, points: int = 500, samples: bool = True) -> SeenJob:
    """points: the resolution of curves; a curve has up to twice as many points.   samples: read samples.jsonl too.

    Raises: InputError if the folder holds no run, or more than 40 runs.
    """
    if not folder.is_dir():
        raise InputError(f"{shown(str(folder))}: needed the folder of a run or a pipeline, found none; check the path")
    paths, name = list(run_folders(folder)), shown(str(folder))
    if not paths:
        raise InputError(f"{name}: needed a folder with a run in it, found none; a run has metrics.jsonl")
    if len(paths) > MOST_RUNS:
        raise InputError(f"{name}: needed at most {MOST_RUNS} runs, found {len(paths)}; name a folder further below")
    runs = [read_run(path, points, samples) for path in paths]
    runs.sort(key=lambda run: (not run.started, run.started))
    notes: list[str] = []
    return SeenJob(folder, runs, _summary(folder / "summary.json", notes), notes)


def read_run(folder: Path, points: int = 500, samples: bool = True) -> SeenRun:
    run = SeenRun(folder, folder.resolve().name)
    _read_settings(run)
    _read_log(run)
    run.metrics = _read_series(run, "metrics.jsonl", points)
    run.timings = _read_series(run, "timings.jsonl", points)
    if samples:
        _read_samples(run)
    run.finished = is_complete(folder / "model")
    return run


def counted(number: int, noun: str) -> str:
    """ "1 line", "2,000 lines"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def run_folders(folder: Path) -> Iterator[Path]:
    """The folder and all below it, as far as they hold a run."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # an evaluation has a config.toml too, so that name alone does not mark a run
        if {"metrics.jsonl", "log.txt"} & set(files) or ("config.toml" in files and "checkpoints" in folders):
            folders.clear()  # checkpoints and models hold no runs
            yield Path(path)


def _read_settings(run: SeenRun) -> None:
    try:
        document = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    except OSError as error:
        run.notes.append(f"config.toml cannot be read ({error.strerror}), so the settings are not known")
    except (ValueError, RecursionError) as error:
        run.notes.append(f"config.toml is broken ({shown(str(error))}), so the settings are not known")
    else:
        tables = [name for name, value in document.items() if isinstance(value, dict)]
        own = [name for name in tables if name not in (*COMMON, "sharding")]
        # the last stage of a job may list the settings of the stages before it too
        run.kind = run.folder.name if run.folder.name in own else next(iter(own), "-")
        run.settings = flat(document)


def _read_log(run: SeenRun) -> None:
    try:
        with (run.folder / "log.txt").open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(MOST_LINE):
                if match := STARTED.fullmatch(line[:200]):
                    run.planned = int(match[1])
                    run.started, run.starts = run.started or line[:19], run.starts + 1
    except OSError as error:
        run.notes.append(f"log.txt cannot be read ({error.strerror}), so the planned number of steps is not known")


def _read_series(run: SeenRun, name: str, points: int) -> dict[str, Series]:
    """Name -> series, of a file with a row for each step."""
    found: dict[str, Series] = {}
    others: set[str] = set()
    last = repeated = 0
    for row, _ in rows_of(run, name):
        if (step := row["step"] + 1) <= last:
            repeated += 1
            continue
        last = step
        for key, value in row.items():
            if key != "step" and (key in found or len(found) < MOST_NAMES):
                found.setdefault(key, Series(points)).add(step, value)
            else:
                others |= {key} if len(others) < 10_000 else set()
    if others > {"step"}:
        run.notes.append(f"{name}: {MOST_NAMES} metrics are shown, {len(others) - 1:,} are left out")
    if repeated:
        run.notes.append(f"{name}: {counted(repeated, 'line')} of an earlier step, after a later step, left out")
    for key, series in found.items():
        if series.left_out:
            run.notes.append(
                f"{name}: {shown(key, 40)}: {counted(series.left_out, 'value')} not finite or no number, left out"
            )
    if (widest := max((series.width for series in found.values()), default=1)) > 1:
        run.notes.append(f"{name} is long: a point of a curve stands for up to {widest} steps, with their range")
    return {key: series for key, series in found.items() if series.buckets}


def _read_samples(run: SeenRun) -> None:
    """Keep every k-th step with samples, and the last; k doubles when the kept rows are too many."""
    kept: list[_Step] = []
    every, count, cut = 1, 0, 0
    for row, size in rows_of(run, "samples.jsonl"):
        if not kept or kept[-1].step != row["step"] + 1:
            if kept and kept[-1].number % every:
                kept.pop()
            kept.append(_Step(row["step"] + 1, count))
            count += 1
        if len(kept[-1].rows) == ROWS:
            cut += 1
            continue
        kept[-1].rows.append(row)
        kept[-1].bytes += size
        if len(kept) > 2 * STEPS or sum(step.bytes for step in kept) > MOST_BYTES:
            every *= 2
            kept = [*(step for step in kept[:-1] if step.number % every == 0), kept[-1]]
    run.sample_steps = count
    run.samples = [(step.step, step.rows) for step in kept]
    if count > len(kept):
        run.notes.append(f"samples.jsonl is long: the samples of {len(kept)} of its {count:,} steps are shown")
    if cut:
        run.notes.append(f"samples.jsonl: {ROWS} rows of a step are shown, {cut:,} rows are left out")


@dataclass
class _Step:
    """A step with samples."""

    step: int
    number: int  # among the steps with samples
    rows: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0  # of the rows in their file


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row that a line of a file holds. None for a line that is broken or has no step."""
    try:
        row = json.loads(line)
        return row if type(row["step"]) is int and 0 <= row["step"] < 2**53 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rows_of(run: SeenRun, name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """-> (row, its bytes) for each line of the file with a step. A note counts the lines that cannot be read."""
    number = faults = first = 0
    is_whole = True
    try:
        with (run.folder / name).open("rb") as file:
            while line := file.readline(MOST_LINE):
                number, is_whole = number + 1, line.endswith(b"\n")
                if row := row_of(line):
                    yield row, len(line)
                else:
                    faults, first = faults + 1, first or number
    except OSError as error:
        run.notes.append(f"{name} cannot be read ({error.strerror})")
    if faults == 1 and first == number and not is_whole:
        run.notes.append(f"{name}: the last line is half-written")
    elif faults:
        run.notes.append(f"{name}: {counted(faults, 'line')} not readable, the first is line {first}")


def _summary(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()[: 1 << 20])
        if not isinstance(found, dict):
            raise ValueError(f"needed an object, got {shown(found, 40)}")
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"summary.json cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        notes.append(f"summary.json is broken ({shown(str(error))})")
    else:
        return found
    return {}
