"""The files of a run that grow line by line: metrics, timings, samples, log."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minirlhf.training.checkpoint import write_whole


class Journal:
    """Writes the lines of one run.

    `metrics.jsonl` holds no time and no memory, so a run that was killed and resumed writes the same bytes.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self.folder = folder
        self._last = time.perf_counter()
        for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl"):
            _drop_lines_from(folder / name, resumed_at)
        self._files = {
            name: (folder / name).open("a", encoding="utf-8")
            for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "log.txt")
        }

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
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", file=self._files["log.txt"], flush=True)
        if show:
            tqdm.write(text, file=sys.stderr)

    def show(self, text: str) -> None:
        """Print a line on stdout, above the progress bar."""
        tqdm.write(text)
        sys.stdout.flush()

    def sync(self) -> None:
        """Flush all files to the disk, so that no checkpoint exists without the lines of the steps before it."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def _write(self, name: str, row: dict[str, Any]) -> None:
        print(json.dumps(row, ensure_ascii=False), file=self._files[name], flush=True)


def peak_memory_mb() -> int:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1_000_000 if sys.platform == "darwin" else 1_000)


def _drop_lines_from(path: Path, step: int) -> None:
    """Delete the lines of steps that will be trained again, and a line that a crash cut short."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines() breaks at U+2028 too
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] < step:
                lines.append(line + "\n")
    write_whole(path, "".join(lines))
