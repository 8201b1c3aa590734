"""Delete an earlier run, so that a cell of a notebook can run again. Only files that a run writes are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.runtime.distributed import barrier, is_main

FIRST = ("config.toml", "log.txt")  # every run has both
FILES = (*FIRST, "metrics.jsonl", "timings.jsonl", "samples.jsonl")
FOLDERS = ("checkpoints", "model", "adapter")


def delete_run(folder: Path, resume: bool) -> None:
    """Empty the folder of a run.   Raises: InputError if it holds anything else, or the run is to resume."""
    if resume:
        raise InputError(f"{folder}: needed resume or overwrite, got both; leave one out")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    ours = [path for path in found if path.name in (FILES if path.is_file() else FOLDERS) and not path.is_symlink()]
    leftovers = [path for path in found if path.name.startswith(".") and path.name.endswith(".tmp")]
    if others := [path.name for path in found if path not in ours and path not in leftovers]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"{folder}: overwrite deletes a run's own files only, found {', '.join(others[:3])}{more}; move them, or "
            "choose another output"
        )
    if ours and not all((folder / name).is_file() for name in FIRST):
        raise InputError(f"{folder}: overwrite needs the folder of a run, found no {' or '.join(FIRST)} in it")
    barrier()  # every process looks before the main process deletes
    # the files that mark a run go last: an interrupted deletion can be repeated
    for path in sorted([*leftovers, *ours], key=lambda path: path.name in FIRST) if is_main() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    barrier()
