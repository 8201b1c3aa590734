"""`minirlhf run samples`: who wrote what, in the newest samples of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minirlhf.columns import in_colour, printable
from minirlhf.data.colours import Kind, rendered
from minirlhf.errors import InputError
from minirlhf.training.runs import runs_below, samples_of

KINDS: dict[str, Kind] = {"policy": "learned", "environment": "masked"}
NOT_SHOWN = ("step", "prompt", "completion", "turns")  # as facts; nor are lists, such as the numbers of each token


def show_samples(folder: Path, step: int | None = None, n: int = 4) -> str:
    """The samples of each run below a folder, with colours on a terminal and marks on a pipe.

    step: the samples after this number of steps; None: the last ones.   n: samples of a run, at most.
    Raises: InputError if no run has samples, no run has samples after this step, or n is below 1.
    """
    if n < 1:
        raise InputError(f"--n: needed at least 1 sample, got {n}")
    runs, damaged = runs_below(folder)
    if not runs:
        why = f"; skipped: {damaged[0]}" if damaged else "; a run has config.toml and metrics.jsonl"
        raise InputError(f"{folder}: needed a folder with runs in it, found none{why}")
    parts, colour, known = [], in_colour(), set()
    for run in runs:
        rows, steps = samples_of(run.folder, None if step is None else step - 1)
        known |= steps
        for number, row in enumerate(rows[:n], start=1):
            shown = {name: x for name, x in row.items() if name not in NOT_SHOWN and not isinstance(x, list)}
            facts = [f"{name} {_value(x)}" for name, x in shown.items()]
            where = f"{printable(run.folder.name)}, after {row['step'] + 1} steps, sample {number}"
            parts.append("\n".join([f"--- {', '.join([where, *facts])}", rendered(pieces_of(row), colour)]))
    if not parts:
        steps = ", ".join(str(each + 1) for each in sorted(known)[-10:])
        needed = f"needed samples after {step} steps; the last steps with samples: {steps}" if known else ""
        raise InputError(f"{folder}: {needed or 'needed samples, found none; wait for the first evaluation'}")
    legend = [("prompt, ", "prompt"), ("policy", "learned"), (", ", "prompt"), ("environment", "masked")]
    return "\n\n".join([*parts, rendered(legend, colour)])


def pieces_of(row: dict[str, Any]) -> list[tuple[str, Kind]]:
    """The texts of a sample, and who wrote each. A turn that is not as expected is shown as it is."""
    turns = row.get("turns") or [{"by": "policy", "text": row.get("completion", "")}]
    pieces: list[tuple[str, Kind]] = [(_value(row.get("prompt", "")), "prompt")]
    for turn in turns if isinstance(turns, list) else [turns]:
        known = isinstance(turn, dict) and turn.get("by") in KINDS
        pieces.append((_value(turn.get("text", "")), KINDS[turn["by"]]) if known else (_value(turn), "prompt"))
    return pieces


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
