"""The numbers of runs as one CSV file: a row for each step of each run, a column for each metric."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.seeing.output import replaces
from minirlhf.seeing.page import names_of
from minirlhf.seeing.reading import SeenRun, counted, rows_of, run_folders

FIRST = ("run", "step")  # the first columns; only a file that begins with them is overwritten
TIMES = ("seconds", "evaluation_seconds", "memory_mb", "gpu_memory_mb")  # the last columns, of timings.jsonl
MOST_COLUMNS = 1000  # of metrics


def write_csv(folders: Sequence[Path], path: Path) -> list[str]:
    """Write the file -> notes about lines that cannot be read, and a line about its size.

    A step is counted from 1. A value that is no number is left out. No file is held in memory.
    Raises: InputError for a folder without a run, and for a path that holds another file.
    """
    runs = [SeenRun(run, run.resolve().name) for folder in folders for run in _runs_of(folder)]
    names = list(dict.fromkeys(name for run in runs for row, _ in rows_of(run, "metrics.jsonl") for name in row))
    names = [name for name in names if name not in (*FIRST, *TIMES)]
    columns, count = [*FIRST, *names[:MOST_COLUMNS], *TIMES], 0
    with (
        replaces(path, _is_ours) as part,
        part.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for run, label in zip(runs, names_of([run.folder for run in runs]), strict=True):
            for row in _rows(run.folder):
                values = [row.get(name) for name in columns[1:]]
                table.writerow([label, *(x if type(x) in (int, float) else "" for x in values)])
                count += 1
    notes = [f"{run.folder}: {note}" for run in runs for note in run.notes]
    notes += [f"{len(names) - MOST_COLUMNS:,} metrics are left out"] if len(names) > MOST_COLUMNS else []
    return [*notes, f"{counted(count, 'row')} with {counted(len(columns), 'column')}: {path}"]


def _runs_of(folder: Path) -> list[Path]:
    if not (runs := list(run_folders(folder))):
        raise InputError(f"{shown(str(folder))}: needed a folder with a run in it, found none; check the path")
    return runs


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(100).startswith(",".join(FIRST).encode())


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl, each with the times of its step. Both files are in the order of steps."""
    run = SeenRun(folder, folder.name)  # its notes are known
    times = rows_of(run, "timings.jsonl")
    time = next(times, None)
    for row, _ in rows_of(run, "metrics.jsonl"):
        while time and time[0]["step"] < row["step"]:
            time = next(times, None)
        found = time[0] if time and time[0]["step"] == row["step"] else {}
        yield {**row, **{name: found.get(name) for name in TIMES}, "step": row["step"] + 1}
