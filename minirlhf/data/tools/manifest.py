"""Files of rows that a tool writes: JSONL, and a manifest beside it that says where each row came from.

FILE.manifest.json: {"file", "sha256", "rows", "made_by", "settings", "sources": [{"file", "sha256", "bytes"}, ...],
"origin": [[number of the source, line], ...]}. origin[i] belongs to row i of the file; the line counts from 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minirlhf.errors import InputError
from minirlhf.pretrained.hub import pinned


class Made(NamedTuple):
    """A value to write, and its origin."""

    value: object
    file: str
    line: int


def manifest_of(path: str | Path) -> Path:
    return Path(f"{path}.manifest.json")


def check_new(path: str | Path) -> Path:
    """The path. Raises: InputError if it, or its manifest, exists: no tool overwrites a file."""
    for existing in (Path(path), manifest_of(path)):
        if os.path.lexists(existing):
            raise InputError(f"{existing}: needed a new file to write, found an existing file; choose another --output")
    return Path(path)


def write_rows(
    path: str | Path,
    rows: Sequence[Made],
    made_by: str,
    settings: dict,
    sources: Iterable[dict] = (),
    text: str | None = None,
) -> Path:
    """Write the values as JSONL, and the manifest. A reader sees whole files or no files.

    sources: entries for origins that are no files, such as {"file": "reviews", "seed": 0}.
    text:    the values in another form than JSONL.
    """
    path, described = check_new(path), {source["file"]: source for source in sources}
    names = {name: number for number, name in enumerate(dict.fromkeys(row.file for row in rows))}
    content = ("".join(as_line(row.value) for row in rows) if text is None else text).encode()
    manifest = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": len(rows),
        "made_by": made_by,
        "settings": settings,
        "sources": [described.get(name) or fingerprint(name) for name in names],
        "origin": [[names[row.file], row.line] for row in rows],
    }
    write_new(path, content)
    write_new(manifest_of(path), (json.dumps(manifest, ensure_ascii=False) + "\n").encode())
    return path


def write_new(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it. Raises: InputError if the file exists or cannot be made."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        open(path, "xb").close()  # takes the name, or fails
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path}: needed a file that can be made, got: {error.strerror}") from None
    finally:
        with suppress(OSError):
            aside.unlink()


def fingerprint(file: str) -> dict:
    """A source's entry in the manifest."""
    if not os.path.isfile(file):
        return {"file": pinned(file)}  # standard input, a data set of the hub with its commit
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"file": file, "sha256": digest, "bytes": os.path.getsize(file)}


def as_line(value: object) -> str:
    """A JSON value as a line. Letters stay readable; half a surrogate pair is written as an escape."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text + "\n"
