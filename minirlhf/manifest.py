"""manifest.json lists the files of a folder with sizes and checksums. The file holds a checksum of itself too.

`is_complete` compares sizes and is cheap. `check_files` compares checksums and reads every byte. So a bit that flips in
any file of a folder is found when the folder is read.

Two folders have fewer checks. An early version of minirlhf wrote {name: size} as the whole manifest, without checksums.
And a user may edit the texts of a finished model, such as generation_config.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown

MANIFEST = "manifest.json"
MODELS = ("config.json", "adapter_config.json")  # the folder of a model holds one of them; a checkpoint has subfolders
TEXTS = (".json", ".jinja", ".md", ".txt")
MOST_BYTES = 1 << 28  # of a manifest; hundreds of processes need a tenth of it
KNOWN: dict[tuple[Path, int, int, int], str] = {}  # a version of a file -> its checksum


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
    """The content of manifest.json. A file in a manifest of an early version has no "sha256".

    Raises: ValueError if it is damaged, OSError if it cannot be read.
    """
    try:
        content = _read(folder / MANIFEST)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        if _has_sizes_only(content):
            return {"files": {name: {"size": size} for name, size in content.items()}}
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
    name = MANIFEST
    try:
        files = read_manifest(folder)["files"]
        for name, file in files.items():
            if (size := (folder / name).stat().st_size) != file["size"] and not _is_text_of_model(name, files):
                return f"{name} has {size:,} bytes, not {file['size']:,}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except ValueError as error:
        return str(error)
    return None


def damage(folder: Path, part: Sequence[str] | None = None) -> str | None:
    """The first fault of a folder, in words, or None. part: names of the files to read; None: all files."""
    try:
        if fault := missing(folder):
            return fault
        files = read_manifest(folder)["files"]
        for name in files if part is None else part:
            if _is_changed(folder / name, files[name]) and not _is_text_of_model(name, files):
                return f"the checksum of {name} differs from {MANIFEST}"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return None


def check_files(folder: Path, advice: str) -> None:
    """Raise InputError, ending in `advice`, if a file of the folder differs from the manifest."""
    if fault := damage(folder):
        raise InputError(f"{folder}: damaged: {fault}; {advice}")


def check_model_files(folder: Path) -> list[str]:
    """Check a model's folder if one of our programs wrote it: the folder, or the checkpoint around it, has a manifest.

    A manifest.json of another tool is ignored.
    Returns: a line for each text of a finished model that was changed by hand, or for a folder without checksums.
    Raises: InputError if any other file differs from the manifest.
    """
    advice = "take another copy of it, or delete its manifest.json if you changed the files yourself"
    if is_ours(folder / MANIFEST):
        check_files(folder, advice)
        files = read_manifest(folder)["files"]
        texts = [name for name in files if _is_text_of_model(name, files)]
        edited = [name for name in texts if _is_changed(folder / name, files[name])]
        return [*(f"{folder / name}: changed since it was written" for name in edited), *_unchecked(folder)]
    around = folder.parent
    if not is_ours(around / MANIFEST):
        return []
    try:
        names = [name for name in read_manifest(around)["files"] if name.startswith(f"{folder.name}/")]
        fault = names and damage(around, names)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise InputError(f"{around}: damaged: {fault}; {advice}")
    return _unchecked(around) if names else []


def _unchecked(folder: Path) -> list[str]:
    """A line if the manifest of the folder has no checksums."""
    if all("sha256" in file for file in read_manifest(folder)["files"].values()):
        return []
    return [
        f"{folder}: an early version wrote it without checksums; its sizes are right, its contents cannot be checked"
    ]


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(path: Path) -> tuple[int, int, int]:
    """Three numbers that change when the file changes."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def checksum_once(path: Path) -> str:
    """The checksum of a file. A program reads each file once, unless the file changes."""
    key = path, *version_of(path)
    if key not in KNOWN:
        KNOWN[key] = checksum(path)
    return KNOWN[key]


def _is_changed(path: Path, listed: dict[str, Any]) -> bool:
    """True if the size or the contents of a file differ from its entry in the manifest."""
    if (size := path.stat().st_size) != listed["size"] or "sha256" not in listed:
        return size != listed["size"]
    return checksum_once(path) != listed["sha256"]


def _is_text_of_model(name: str, files: dict[str, Any]) -> bool:
    return name.endswith(TEXTS) and any(model in files for model in MODELS)


def _has_sizes_only(content: dict[str, Any]) -> bool:
    return bool(content) and all(type(size) is int for size in content.values())


def is_ours(path: Path) -> bool:
    """True if this is a manifest of minirlhf, or a damaged file under the name of a manifest."""
    if not path.is_file():
        return False
    try:
        content = _read(path)
    except (ValueError, RecursionError):
        return True  # damaged: reading it gives the error
    except OSError as error:
        raise InputError(f"{path}: needed a file that can be read, got: {shown(error.strerror)}") from None
    if not isinstance(content, dict):
        return True
    if _has_sizes_only(content):  # of an early version, unless the numbers are no sizes of a model's files
        return any(name.rpartition("/")[2] in MODELS for name in content)
    return "sha256" in content or isinstance(content.get("files"), dict)


def _read(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
