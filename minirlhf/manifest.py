"""manifest.json lists the files of a folder with sizes and checksums. The file holds a checksum of itself too.

`is_complete` compares sizes and is cheap. `check_files` compares checksums and reads every byte. So a bit that flips in
any file of a folder is found when the folder is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown

MANIFEST = "manifest.json"


def write_manifest(folder: Path, **more: Any) -> None:
    """List all files below `folder`. more: further keys of the manifest."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"files": files, **more}
    sealed = {**content, "sha256": _seal(content)}
    (folder / MANIFEST).write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of manifest.json.   Raises: ValueError if it is damaged, OSError if it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content and all(type(size) is int for size in content.values()):
            raise ValueError("it has sizes without checksums, as an earlier version of minirlhf wrote it")
        seal = content.pop("sha256")
        if seal != _seal(content) or not all(
            type(file["size"]) is int and type(file["sha256"]) is str for file in content["files"].values()
        ):
            raise ValueError("its checksum does not fit its content")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged ({error or type(error).__name__})") from None
    return content


def is_complete(folder: Path) -> bool:
    """True if every file of the manifest exists and has its listed size."""
    try:
        return not missing(folder)
    except OSError as error:  # a resumed run must not take an older checkpoint in silence
        raise InputError(f"{folder}: needed a folder that can be read ({error}); check its permissions") from None


def missing(folder: Path) -> str | None:
    """The first fault that needs no reading of contents, in words; None if all sizes are as listed. Raises: OSError."""
    try:
        for name, file in read_manifest(folder)["files"].items():
            if (size := (folder / name).stat().st_size) != file["size"]:
                return f"{name} has {size:,} bytes, not {file['size']:,}"
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except ValueError as error:
        return str(error)
    return None


def damage(folder: Path, part: Sequence[str] | None = None) -> str | None:
    """The first fault of a folder, in words, or None. part: names of the files to read; None: all files."""
    try:
        if fault := missing(folder):
            return fault
        for name, file in read_manifest(folder)["files"].items():
            if part is None or name in part:
                stat = (folder / name).stat()
                if _checksum_once(folder / name, stat.st_mtime_ns, stat.st_ino, file["size"]) != file["sha256"]:
                    return f"the checksum of {name} differs from {MANIFEST}"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return None


def check_files(folder: Path, advice: str) -> None:
    """Raise InputError, ending in `advice`, if a file of the folder differs from the manifest."""
    if fault := damage(folder):
        raise InputError(f"{folder}: damaged: {fault}; {advice}")


def check_model_files(folder: Path) -> None:
    """Check a model's folder if one of our programs wrote it: the folder, or the checkpoint around it, has a manifest.

    A manifest.json of another tool is ignored. Raises: InputError.
    """
    advice = "take another copy of it, or delete its manifest.json if you changed the files yourself"
    if _is_ours(folder / MANIFEST):
        check_files(folder, advice)
    elif _is_ours(folder.parent / MANIFEST):
        try:
            names = [name for name in read_manifest(folder.parent)["files"] if name.startswith(f"{folder.name}/")]
            fault = names and damage(folder.parent, names)
        except ValueError as error:
            fault = str(error)
        if fault:
            raise InputError(f"{folder.parent}: damaged: {fault}; {advice}")


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=1024)
def _checksum_once(path: Path, *version: int) -> str:
    """The checksum of a file. Its version is in the key, so that a program reads each file once."""
    return checksum(path)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True  # damaged: reading it gives the error
    except OSError as error:
        raise InputError(f"{path}: needed a file that can be read, got: {shown(error.strerror)}") from None
    return not isinstance(content, dict) or "sha256" in content or isinstance(content.get("files"), dict)


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
