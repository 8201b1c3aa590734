"""The file that a command about runs writes: complete or absent, and never in the place of another file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minirlhf.errors import InputError, writes


@contextmanager
def replaces(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a path to write to. At the end of the block that file becomes `path`; after an error it is deleted.

    is_ours: True for an earlier file of the same kind; only such a file is replaced.
    Raises: InputError for another file or a folder, and for an error of the system.
    """
    part = path.parent / f".{path.name}.part"
    with writes(path):
        if path.exists() and not is_ours(path):
            raise InputError(f"{path}: holds another file already; choose another --output")
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
