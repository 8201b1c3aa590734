"""Which files a source names: files, folders, patterns, "-" for standard input, and hub:OWNER/NAME."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence

from minirlhf.errors import InputError, shown

STDIN = "-"
HUB = "hub:"  # begins the name of a data set of the hub
ENDINGS = ("jsonl", "json", "ndjson", "csv", "tsv", "txt", "parquet", "arrow")  # of data files, before .gz
SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def files_of(source: str | os.PathLike | Sequence) -> tuple[list[str], list[str]]:
    """The files of a source, each once, and notes on files that are left out.

    A text with commas names several, unless a file has this very name. The files of a folder and of a pattern are
    sorted by name. Raises: InputError if a name leads to no file.
    """
    notes: list[str] = []
    found: dict[tuple | str, str] = {}
    for name in _names(source):
        for path in [name] if name == STDIN else _expanded(name, notes):
            status = None if path == STDIN else _status(path)
            identity = path if status is None else (status.st_dev, status.st_ino)
            if identity in found:
                same = "" if found[identity] == path else f" (the same file as {found[identity]})"
                notes.append(f"{path} is named twice{same}; it is read once")
            else:
                found[identity] = path
    if not found:
        raise InputError(f"needed the path of a file, got {shown(source)}")
    return list(found.values()), notes


def _names(source: object) -> Iterator[str]:
    parts = [source] if isinstance(source, str | bytes | os.PathLike) else source
    if not isinstance(parts, Sequence) or not parts:
        raise InputError(f"needed the path of a file, a folder or a pattern, or a list of these, got {shown(source)}")
    for part in parts:
        if not isinstance(part, str | bytes | os.PathLike):
            raise InputError(f"needed the path of a file, got {shown(part)}; rows in memory need no reading")
        name = os.fsdecode(part)
        yield from map(os.path.expanduser, filter(None, [name] if os.path.lexists(name) else name.split(",")))


def _expanded(name: str, notes: list[str]) -> Iterator[str]:
    if name.startswith(HUB):
        from minirlhf.pretrained.hub import data_files

        yield from data_files(name, notes)
        return
    if glob.has_magic(name) and not os.path.lexists(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise InputError(f"{name}: needed a pattern that fits a file, got none that fits; check the path")
    else:
        matches = [name]
    for match in matches:
        if stat.S_ISDIR(_status(match).st_mode):
            yield from _inside(match, notes)
        else:
            yield match


def _inside(folder: str, notes: list[str]) -> list[str]:
    """The files of a folder and its folders: those with a data file's ending, or all if none has one."""
    found, hidden, seen = [], 0, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            notes.append(f"{place} leads back to a folder that is read already; it is left out")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden += sum(name.startswith(".") for name in [*names, *folders])
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(place, name) for name in names if not name.startswith(".")]
    data = sorted(path for path in found if endings(path) & {*ENDINGS})
    if data and (others := sorted({*found} - {*data})):
        few = ", ".join(os.path.relpath(path, folder) for path in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        notes.append(f"{folder}: not read: {few}{more} (name a file to read it)")
    if hidden:
        notes.append(f"{folder}: {hidden} hidden {'file' if hidden == 1 else 'files'} not read")
    if not found:
        raise InputError(f"{folder}: needed a folder with data files, got no visible file in it; check the path")
    return data or sorted(found)


def endings(path: str) -> set[str]:
    """The endings of a file's name: {"jsonl", "gz"}."""
    return {*os.path.basename(path).lower().split(".")[1:]}


def _status(path: str) -> os.stat_result:
    """The file's status.   Raises: InputError if it is missing, or neither a file nor a folder. It is not opened."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: needed a readable data file, got: {cause}; check the path") from None
    for is_so, name in SPECIAL:
        if is_so(status.st_mode):
            raise InputError(
                f"{path}: needed a file or a folder, got {name}; give a stream to standard input: --data -"
            )
    return status
