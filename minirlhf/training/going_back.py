"""`--resume step-N`: go back to an older checkpoint of a run. Nothing is deleted: all later files are moved aside."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from minirlhf.errors import InputError, shown, writes
from minirlhf.manifest import check_files, is_complete
from minirlhf.pretrained.safe import read_json
from minirlhf.training.checkpoint import STATE
from minirlhf.training.records import LINES

STEP = re.compile(r"step-(\d+)")


def check_step(run: Path, name: str, final: str) -> None:
    """Raise InputError unless the run in this folder has a complete checkpoint of this name.

    final: as in `RunSettings`. "best" needs the checkpoint too that was the best at this step.
    """
    if not is_complete(run / "checkpoints" / name):
        known = ", ".join(f"step-{n}" for n in sorted(_steps(run))) or "none"
        raise InputError(f"--resume {name}: needed a complete checkpoint of {run}, which has {known}; choose another")
    folder = run / "checkpoints" / name
    check_files(folder, "choose another step")
    best = read_json(folder / STATE, "the state of a run", best=dict)["best"].get("step")
    if final == "best" and best and not is_complete(run / "checkpoints" / f"step-{best}"):
        raise InputError(
            f"--resume {name}: --run.final best needs step-{best}, the best checkpoint at that step, but a later best "
            "has replaced it; choose a later step"
        )


def go_back(run: Path, name: str) -> str:
    """Make the checkpoint `name` the newest of its run -> a line that says what was moved, and where.

    Later checkpoints and the finished model go to the folder left-001 (or -002, ...) of the run, with a copy of the
    files whose later lines the resumed run drops.
    """
    step = int(STEP.fullmatch(name)[1])
    later = [run / "checkpoints" / f"step-{n}" for n in sorted(_steps(run)) if n > step]
    moved = [*later, *(run / folder for folder in ("model", "adapter") if (run / folder).exists())]
    kept = set_aside(run, moved)
    lines = (run / LINES[0]).read_text(encoding="utf-8").count("\n") if (run / LINES[0]).exists() else 0
    return (
        f"{run}: goes back to {name}; {max(0, lines - step):,} later lines of metrics, {len(later)} later checkpoints "
        f"and the finished model, if any, are in {kept}"
    )


def set_aside(run: Path, moved: list[Path]) -> Path:
    """Move files of a run, and copy the files with lines, to a new folder left-NNN of the run -> that folder."""
    kept = next(aside for n in range(1, 10_000) if not (aside := run / f"left-{n:03d}").exists())
    with writes(kept):
        kept.mkdir()
        for path in (run / file for file in LINES):
            if path.exists():
                shutil.copyfile(path, kept / path.name)
        for path in moved:
            path.rename(kept / path.name)
    return kept


def check_name(value: str) -> None:
    """Raise InputError unless this is step-N or previous."""
    if value != "previous" and not STEP.fullmatch(value):
        raise InputError(f"--resume: needed no value, true, false, previous or step-N, got {shown(value)}; see --help")


def _steps(run: Path) -> list[int]:
    found = (run / "checkpoints").glob("step-*")
    return [int(match[1]) for path in found if (match := STEP.fullmatch(path.name)) and is_complete(path)]
