"""The lines of a run after a resume: lines of steps that are trained again are dropped, damage is named.

A checkpoint knows the length and the sha256 of metrics.jsonl and samples.jsonl. If the beginning of the file is still
the same, the file is cut at this byte. Else, and for timings.jsonl, it is cut at the first line of a later step; lines
that cannot be read stay in the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

from minirlhf.errors import shown, writes

SAME = ("metrics.jsonl", "samples.jsonl")  # a repetition of the run writes the same bytes
LINES = (*SAME, "timings.jsonl")
BLOCK = 1 << 20  # bytes that are read at a time


def cut(folder: Path, step: int, marks: Any) -> tuple[dict[str, Any], list[str]]:
    """Drop the lines of `step` and later steps, and a line that a crash cut short.

    marks: name -> {"bytes", "sha256"} in the checkpoint; None in a checkpoint of an earlier version.
    Returns: name -> the sha256 of the rest, to go on with; a line of text for each fault of the files.
    """
    sums, notes = {}, []
    for path in (folder / name for name in LINES):
        mark = marks.get(path.name) if isinstance(marks, dict) else None
        if (end := _marked_end(path, mark)) is None:
            end, faults = _end(path, step)
            notes += faults[:3] + [f"{path}: and {len(faults) - 3} more lines that cannot be read"] * (len(faults) > 3)
            if mark:
                notes.append(f"{path}: the lines of the steps before {step} are not those that the checkpoint knows")
        if path.exists():
            with writes(path):
                os.truncate(path, end)
        if path.name in SAME:
            sums[path.name] = _sha256(path, end)
    return sums, notes


def fault(line: bytes) -> str | None:
    """The reason why this is no line of a step, or None."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return None if type(step) is int and step >= 0 else f"step {shown(step, 20)}"


def _marked_end(path: Path, mark: Any) -> int | None:
    """The length in the mark, if the file begins with these bytes."""
    try:
        size = int(mark["bytes"])
        found = path.stat().st_size if path.exists() else 0
        return size if 0 <= size <= found and _sha256(path, size).hexdigest() == mark["sha256"] else None
    except (TypeError, KeyError, ValueError):
        return None


def _end(path: Path, step: int) -> tuple[int, list[str]]:
    """-> (the bytes before the first line of `step` or a later step, the lines before it that cannot be read)."""
    end, faults = 0, []
    with path.open("rb") if step and path.exists() else io.BytesIO() as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            if reason := fault(line):
                faults.append(f"{path}: line {number} cannot be read ({reason}); it stays as it is")
            elif json.loads(line)["step"] >= step:
                break
            end += len(line)
    return end, faults


def _sha256(path: Path, size: int) -> Any:
    """The sha256 of the first bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") if size else io.BytesIO() as file:
        while size and (block := file.read(min(size, BLOCK))):
            found.update(block)
            size -= len(block)
    return found
