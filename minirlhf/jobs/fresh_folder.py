"""A folder for results that are written once, at the end of a program. It is never one that holds files."""

from __future__ import annotations

import os
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.training.checkpoint import holds_anything


def check_folder(output: str | None) -> None:
    """Raise InputError if the folder cannot be made or holds files. To be called before the program's work."""
    folder = Path(output or "runs")
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: needed a folder for --output, but {existing} is not a writable folder")
    if output is not None and holds_anything(folder):
        raise InputError(f"{output}: holds files already; choose another --output")


def made_folder(output: str | None, name: str) -> Path:
    """The folder of `output`, or a fresh runs/NAME-001. Two programs that end together never share a fresh folder."""
    while True:
        numbers = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{name}-*")]
        newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
        folder = Path(output) if output is not None else Path("runs") / f"{name}-{newest + 1:03d}"
        try:
            folder.mkdir(parents=True, exist_ok=output is not None)
            return folder
        except OSError as error:
            if output is not None or not isinstance(error, FileExistsError):
                raise InputError(f"{folder}: needed a folder for --output, got: {error.strerror}") from None
