"""The folder of a model is checked against its manifest before it is read."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.manifest import KNOWN, MANIFEST, check_model_files, checksum_once, is_ours, version_of
from minirlhf.runtime.distributed import gather, rank, say, world_size


def check_model_folder(folder: str | Path) -> None:
    """Tell of texts that were changed by hand, and of a folder without checksums.

    Raises: InputError if the folder is damaged; see `check_model_files`.
    """
    for line in check_model_files(Path(folder)):
        _tell(line)


def share_checksums(folder: Path) -> None:
    """Each process reads its share of a model's files, so that no file is read by all. All processes must call it.

    A process takes over the checksum of a file only if it sees the same version of the file: another machine may have a
    copy of its own.
    """
    found = {}
    with contextlib.suppress(OSError, InputError):  # the check that follows names the fault
        if is_ours(folder / MANIFEST) or is_ours(folder.parent / MANIFEST):
            files = [path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
            files.sort(key=lambda path: (-path.stat().st_size, path.name))
            found = {path.name: [*version_of(path), checksum_once(path)] for path in files[rank() :: world_size()]}
    for name, (*version, checksum) in [entry for part in gather(found) for entry in part.items()]:
        KNOWN[folder / name, *version] = checksum


@functools.cache  # a program may read a folder several times
def _tell(line: str) -> None:
    say(line)
