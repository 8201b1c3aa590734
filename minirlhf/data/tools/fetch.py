"""Data sets of the hub as files of a new folder."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

from minirlhf.data.tools.manifest import fingerprint
from minirlhf.errors import InputError
from minirlhf.pretrained.hub import data_files, pinned

MANIFEST = "manifest.json"
MAX_UNPACKED = 1 << 36  # bytes: 64 GiB


def fetch(name: str, folder: Path) -> list[str]:
    """Copy the files of hub:OWNER/NAME:FILES into a new folder; archives are unpacked.   Returns: lines to print."""
    files = [Path(file) for file in data_files(name)]
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        for file in files:
            _copy(file, aside)
        new = sorted(path for path in aside.rglob("*") if path.is_file())
        entries = [{**fingerprint(str(path)), "file": path.relative_to(aside).as_posix()} for path in new]
        manifest = {"made_by": "minirlhf data download", "source": pinned(name), "files": entries}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        aside.rename(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: needed a new folder for {name}, got: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [f"{folder}: {pinned(name)}", *(f"{folder / entry['file']}: {entry['bytes']:,} bytes" for entry in entries)]


def _copy(file: Path, folder: Path) -> None:
    """A file under its name in the hub; a zip archive's files under their own names, without their folders."""
    inside = file.parts[file.parts.index("snapshots") + 2 :]
    if file.suffix != ".zip":
        target = folder.joinpath(*inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        return
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith((".jsonl", ".json"))]
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise InputError(f"{file}: needed an archive of at most {MAX_UNPACKED:,} bytes unpacked, got a larger one")
        for member in members:
            with archive.open(member) as packed, open(folder / Path(member.filename).name, "xb") as out:
                shutil.copyfileobj(packed, out)
