"""The files of a run that grow line by line: metrics, timings, samples, log."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minirlhf.errors import writes


class Journal:
    """Writes the lines of one run.

    `metrics.jsonl` holds no time and no memory, so a run that was killed and resumed writes the same bytes.

    Args:
        resumed_at: the step of the checkpoint that the run goes on from; later lines are dropped.
        marks:      of that checkpoint, see `sync`.
    """

    def __init__(self, folder: Path, resumed_at: int, marks: Any = None) -> None:
        from minirlhf.training.records import LINES, cut  # here, so that the core loads no leaf

        self.folder = folder
        self._last = time.perf_counter()
        self._sums, notes = cut(folder, resumed_at, marks)
        with writes(folder):
            self._files = {name: (folder / name).open("ab", buffering=0) for name in (*LINES, "log.txt")}
        for note in notes:
            self.log(note, show=True)

    def step(
        self, step: int, metrics: dict[str, float], samples: list[dict[str, Any]], evaluation: float | None = None
    ) -> None:
        """Write the lines of a step. evaluation: the seconds of the evaluation in it, if it had an evaluation."""
        now = time.perf_counter()
        self._write("metrics.jsonl", {"step": step, **metrics})
        memory = {"memory_mb": peak_memory_mb()}
        if torch.cuda.is_available():
            memory["gpu_memory_mb"] = torch.cuda.max_memory_allocated() // 1_000_000
        seconds = {} if evaluation is None else {"evaluation_seconds": round(evaluation, 4)}
        self._write("timings.jsonl", {"step": step, "seconds": round(now - self._last, 4), **seconds, **memory})
        for sample in samples:
            self._write("samples.jsonl", {"step": step, **sample})
        self._last = now

    def log(self, text: str, show: bool) -> None:
        """Write one line to log.txt and, if `show`, above the progress bar."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        if show:
            tqdm.write(text, file=sys.stderr)

    def show(self, text: str) -> None:
        """Print a line on stdout, above the progress bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def sync(self) -> dict[str, Any]:
        """Flush all files to the disk, so that no checkpoint exists without the lines of the steps before it.

        Returns: name -> length and sha256 of each file that a repetition would write the same, for the checkpoint.
        """
        with writes(self.folder):
            for file in self._files.values():
                os.fsync(file.fileno())
        return {name: {"bytes": self._files[name].tell(), "sha256": x.hexdigest()} for name, x in self._sums.items()}

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self._append(name, json.dumps(row, ensure_ascii=False) + "\n")

    def _append(self, name: str, line: str) -> None:
        rest = line.encode()
        if name in self._sums:
            self._sums[name].update(rest)
        with writes(self.folder / name):
            while rest:  # without a buffer a full disk takes a part
                rest = rest[self._files[name].write(rest) :]


def peak_memory_mb() -> int:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1_000_000 if sys.platform == "darwin" else 1_000)
