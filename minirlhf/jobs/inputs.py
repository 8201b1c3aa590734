"""inputs.json: the size and sha256 of every file that the settings of a job name. A resumed job needs the same files.

The settings themselves stand in config.toml, so a --config file is not among them. A model or data set of the hub is
named with its commit. Standard input cannot be compared.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minirlhf
from minirlhf.data.reading.files import HUB, STDIN, files_of
from minirlhf.errors import InputError, shown
from minirlhf.jobs.given_models import value_folder
from minirlhf.jobs.models import resolve_model
from minirlhf.manifest import KNOWN, checksum_once
from minirlhf.pretrained.hub import is_model_name
from minirlhf.pretrained.safe import read_json
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import gather, rank, say, world_size
from minirlhf.runtime.same_on_ranks import check_same
from minirlhf.training.checkpoint import write_whole

INPUTS = "inputs.json"
MODELS = ("policy", "student", "value", "base")  # flags that name a model
REWARDS = ("reward", "gold")  # flags that name models or functions of files, with commas

# path of a file -> {"size", "sha256"}; name of a folder or of a pattern -> {"files"}
Fingerprints = dict[str, dict[str, Any]]


def fingerprints(settings: dict[str, Any]) -> Fingerprints:
    """The files that the settings name. All ranks call it; of a file that several ranks see, one rank reads the bytes.

    The checksums are known from then on, so no rank reads the files again to check a model before it is loaded.

    Raises: InputError on all ranks if a rank sees other files than rank 0.
    """
    sources: dict[str, list[str]] = {}
    for name, files in input_files(settings):  # one folder may be the policy and hold the value model
        sources[name] = sorted({*sources.get(name, []), *files})
    seen = {path: _identity(path) for path in sorted({path for files in sources.values() for path in files})}
    before = [identity for theirs in gather(list(seen.values()))[: rank()] for identity in theirs]
    own = {repr(seen[path]): checksum_once(Path(path)) for path in seen if seen[path] not in before}
    sums = {key: checksum for theirs in gather(own) for key, checksum in theirs.items()}
    for path, (_, _, inode, size, changed) in seen.items():
        KNOWN[Path(path), changed, inode, size] = sums[repr(seen[path])]
    found: Fingerprints = {name: {"files": files} for name, files in sources.items() if files != [name]}
    found |= {path: {"size": seen[path][3], "sha256": sums[repr(seen[path])]} for path in seen}
    if world_size() > 1:
        check_same({f"the content of {name}": _short(each) for name, each in found.items()})
    return found


def keep_inputs(folder: Path, found: Fingerprints) -> None:
    """Compare the files of a job with those at its start, and write down the files that are new. All ranks call it.

    Raises: InputError for a file that has changed.
    """
    agreed(lambda: _keep(folder / INPUTS, found))


def _keep(path: Path, found: Fingerprints) -> None:
    known: Fingerprints = {}
    if path.exists():
        known = read_json(path, "sizes and checksums of the job's files")
    elif found and any(path.parent.glob("*/config.toml")):
        say(f"{path}: missing, so files that have changed since the job began are not noticed")
    for name, now in found.items():
        if (then := known.get(name, now)) != now:
            raise InputError(
                f"{name}: has changed since the job in {path.parent} began ({_difference(then, now)}); restore it, or "
                "start a new job with another --output"
            )
    if known != {**known, **found}:
        write_whole(path, json.dumps({**known, **found}, ensure_ascii=False, indent=1) + "\n")


def input_files(settings: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """-> (a name in the settings, its files): of rows, of models, and of reward functions with what they import."""
    job = settings["job"]
    flags = {name: getattr(job, name, None) for name in ("data", "held_out", *MODELS, *REWARDS)}
    rows = [flags["data"], *(getattr(config, "data", None) for name, config in settings.items() if name != "job")]
    rows += [flags["held_out"], *(entry.partition("=")[2] for entry in getattr(job, "validation", ()))]
    for source in [name.strip() for text in rows if isinstance(text, str) for name in text.split(",")]:
        if source and source != STDIN and not source.startswith(HUB):
            yield source, files_of(source)[0]
    for flag, name in [(flag, flags[flag]) for flag in MODELS if flags[flag]]:
        if not is_model_name(name):
            yield name, _model_files(value_folder(name) if flag == "value" else resolve_model(name))
    for name in [name.strip() for flag in REWARDS for name in (flags[flag] or "").split(",")]:
        if os.path.isdir(name):
            yield name, _model_files(resolve_model(name))
        elif os.path.isfile(file := name if name.endswith(".py") else name.rpartition(":")[0]):
            yield from ((path, [path]) for path in [file, *_neighbours(Path(file))])


def _model_files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _neighbours(file: Path) -> Iterator[str]:
    """The modules beside a reward's file that this process has imported; the file may import its neighbours."""
    folder, package = file.resolve().parent, Path(minirlhf.__file__).resolve().parent
    places = (f"{folder}/", f"{file.absolute().parent}/")  # the folder may be reached through a link
    sources = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    for source in [source for name, source in sources.items() if name != "__main__" and source.startswith(places)]:
        path = Path(source).resolve()
        is_beside = path.is_relative_to(folder) and not path.is_relative_to(package) and path != file.resolve()
        if is_beside and path.suffix == ".py" and "site-packages" not in path.parts and path.is_file():
            yield str(file.parent / path.relative_to(folder))


def _short(fingerprint: Any) -> str:
    if isinstance(fingerprint, dict) and "sha256" in fingerprint:
        return f"sha256 {str(fingerprint['sha256'])[:12]}"
    return shown(fingerprint)


def _difference(then: Any, now: dict[str, Any]) -> str:
    if isinstance(then, dict) and isinstance(then.get("files"), list) and "files" in now:
        if gone := [file for file in then["files"] if file not in now["files"]]:
            return f"{gone[0]} is gone"
        return f"{[file for file in now['files'] if file not in then['files']][0]} is new"
    return f"{_short(then)}, now {_short(now)}"


def _identity(path: str) -> list:
    """Two processes that see the same identity see the same bytes."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: needed a file that can be read, got: {error.strerror}") from None
    return [socket.gethostname(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
