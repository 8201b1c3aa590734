"""Delete an earlier run, so that a cell of a notebook can run again. Only files that a run has written are deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.manifest import MANIFEST, read_manifest
from minirlhf.runtime.distributed import barrier, is_main
from minirlhf.training.checkpoint import discard
from minirlhf.training.lock import LOCK

FIRST = ("config.toml", "log.txt")  # every run has both
FILES = (*FIRST, "metrics.jsonl", "timings.jsonl", "samples.jsonl")
FOLDERS = ("checkpoints", "model", "adapter")
STARTED = re.compile(r"\S+ \S+  started at step 0 of \d+\n")  # the first line of log.txt
LEFTOVER = re.compile(r"\..+\.\d+(\.old)?\.tmp")  # of a crash


def delete_run(folder: Path, resume: bool) -> None:
    """Empty the folder of a run.   Raises: InputError if it holds anything else, or the run is to resume."""
    if resume:
        raise InputError(f"{folder}: needed resume or overwrite, got both; leave one out")
    found = [path for path in sorted(folder.iterdir()) if path.name != LOCK] if folder.is_dir() else []
    if others := [str(path.relative_to(folder)) for path in found for path in _strangers(path)]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"{folder}: overwrite deletes a run's own files only, found {', '.join(others[:3])}{more}; move them, or "
            "choose another output"
        )
    found = [path for path in found if not LEFTOVER.fullmatch(path.name)]  # the new run deletes leftovers
    if found and not _is_run(folder):
        raise InputError(f"{folder}: overwrite needs the folder of a run, found no {' or '.join(FIRST)} of a run in it")
    barrier()  # every process looks before the main process deletes
    # the files that mark a run go last: an interrupted deletion can be repeated
    for path in sorted(found, key=lambda path: path.name in FIRST) if is_main() else ():
        discard(path) if path.is_dir() else path.unlink()
    barrier()


def _is_run(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in FIRST):
        return False
    with (folder / "log.txt").open(encoding="utf-8", errors="replace") as log:
        return bool(STARTED.fullmatch(log.readline(200)))


def _strangers(path: Path) -> Iterator[Path]:
    """Files and folders at this path of a run's folder that no run has written."""
    if LEFTOVER.fullmatch(path.name):
        return
    if path.is_symlink() or path.name not in (FILES if path.is_file() else FOLDERS):
        yield path
    elif path.name == "checkpoints":
        for entry in sorted(path.iterdir()):
            is_ours = entry.is_dir() and not entry.is_symlink() and re.fullmatch(r"step-\d+", entry.name)
            if not LEFTOVER.fullmatch(entry.name):
                yield from _unlisted(entry) if is_ours else [entry]
    elif path.is_dir():
        yield from _unlisted(path)


def _unlisted(folder: Path) -> Iterator[Path]:
    """The files of a folder that its manifest does not list with their size."""
    try:
        sizes = {name: file["size"] for name, file in read_manifest(folder)["files"].items()}
    except (OSError, ValueError):
        sizes = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_listed = name == MANIFEST or sizes.get(name) == path.lstat().st_size
        if path.is_symlink() or (path.is_file() and not is_listed):
            yield path
