"""Models and data sets of the hub, by name: OWNER/NAME or OWNER/NAME@REVISION.

huggingface_hub comes with tokenizers. It is imported only when a name is used. HF_ENDPOINT names a mirror, HF_HUB_CACHE
the folder of the files. Only files that minirlhf reads are fetched, and nothing in them is executed. The revision is
resolved to a commit, and `pinned` writes the commit into a run's settings.
"""

from __future__ import annotations

import errno
import os
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from minirlhf.errors import InputError, shown
from minirlhf.pipe import NO_ROOM

NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")
DATA_NAME = re.compile(rf"hub:{NAME.pattern}(?::(.+))?")  # hub:OWNER/NAME@REVISION:FILES
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt")
DOUBLES = ("consolidated*", "original/*", "onnx/*")  # the same weights in another form
DATA_FILES = tuple(f"*.{end}{gz}" for end in ("jsonl", "json", "csv", "tsv", "txt", "parquet") for gz in ("", ".gz"))
NO_ROWS = ("*dataset_infos.json", "*dataset_info.json", "*state.json", "*LICENSE*.txt")
ARCHIVES = ("*.jsonl.zip", "*.json.zip")  # only if FILES asks for them
_commits: dict[str, str] = {}  # name as the user wrote it -> the same name with the commit; of this process


def is_model_name(name: str | Path) -> bool:
    """True for OWNER/NAME if no folder of this name, and no folder OWNER, exists here."""
    found = NAME.fullmatch(str(name))
    return bool(found) and not os.path.exists(name) and not os.path.exists(str(name).partition("/")[0])


def model_folder(name: str) -> Path:
    """The folder of a model of the hub; its files are fetched if they are not here.   Raises: InputError."""
    repo, revision = NAME.fullmatch(name).groups()
    folder = _fetch("model", repo, revision, MODEL_FILES, DOUBLES)
    if not (folder / "config.json").exists():
        raise InputError(f"{name}: needed a model with a config.json, found none in this model of the hub")
    _commits[name] = f"{repo}@{folder.name}"
    return folder


def data_files(name: str, notes: list[str] | None = None) -> list[str]:
    """The files of hub:OWNER/NAME: those that FILES names (a path, or a pattern such as main/*.parquet), else those
    with "train" in their path, else all files of rows.   Raises: InputError.

    notes: gets a line with the commit and the names of the files.
    """
    found = DATA_NAME.fullmatch(name)
    if not found:
        raise InputError(
            f"{name}: needed hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME:FILES; see docs/data.md"
        )
    repo, revision, wanted = found.groups()
    folder = _fetch("dataset", repo, revision, (wanted,) if wanted else DATA_FILES, NO_ROWS)
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    paths = [path for path in paths if _fits(path, (*DATA_FILES, *ARCHIVES))]
    if wanted:  # the folder may hold files of an earlier call
        paths = [path for path in paths if fnmatch(path, wanted)]
    else:
        paths = [path for path in paths if not _fits(path, NO_ROWS)]
        paths = [path for path in paths if "train" in path.lower()] or paths
    if not paths:
        has = f"; it has {some_files('dataset', repo, folder.name)}"
        if wanted:
            raise InputError(f"{name}: needed files of rows named {wanted}, found none in this data set{has}")
        raise InputError(f"{name}: needed a file of rows ({', '.join(DATA_FILES)}), found none in this data set{has}")
    _commits[name] = f"hub:{repo}@{folder.name}" + (f":{wanted}" if wanted else "")
    if notes is not None:
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        notes.append(f"{_commits[name]}: {', '.join(paths[:5])}{more}")
    return [str(folder / path) for path in paths]


def pinned(value: str | tuple) -> str | tuple:
    """A setting with the commit behind each name that this process has resolved: NAME, NAME,NAME or key=NAME."""
    if isinstance(value, tuple):
        return tuple(pinned(part) if isinstance(part, str) else part for part in value)
    parts = [part.rpartition("=") for part in value.split(",")]
    return ",".join(key + equals + _commits.get(name, name) for key, equals, name in parts)


def some_files(kind: str, repo: str, revision: str) -> str:
    """The first files of a model or a data set, for a message. Nothing is fetched."""
    from huggingface_hub import HfApi

    try:
        names = HfApi(endpoint=endpoint()).list_repo_files(repo, repo_type=kind, revision=revision)
    except Exception:  # the message must come without a connection too
        return "files that cannot be listed now"
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "no files"


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


@cache
def _fetch(kind: str, repo: str, revision: str | None, files: tuple[str, ...], left_out: tuple[str, ...]) -> Path:
    """The folder of the files; its name is the commit."""
    from huggingface_hub import errors, logging, snapshot_download

    logging.set_verbosity_error()  # this file says itself what is missing
    what = f"{'hub:' * (kind == 'dataset')}{repo}" + (f"@{revision}" if revision else "")
    where = endpoint()
    try:
        return Path(
            snapshot_download(
                repo,
                repo_type=kind,
                revision=revision,
                endpoint=where,
                cache_dir=os.environ.get("HF_HUB_CACHE"),
                allow_patterns=list(files),
                ignore_patterns=list(left_out),
            )
        )
    except errors.GatedRepoError:
        raise InputError(f"{what}: this {kind} asks for a login; accept its terms and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{what}: {where} has no revision {revision} of this {kind}; check the name") from None
    except errors.RepositoryNotFoundError:
        advice = "check the name, or set HF_TOKEN if it is private"
        raise InputError(f"{what}: no such folder here, and {where} has no such {kind}; {advice}") from None
    except Exception as error:  # of the network: the library of the connection differs from version to version
        raise InputError(f"{what}: {_why(error, where, kind)}") from None


def _why(error: BaseException, where: str, kind: str) -> str:
    """The answer of the hub and a remedy, or the reason why the hub cannot be reached."""
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EACCES):
        return f"its files cannot be written ({error}); make room or give rights, or set HF_HUB_CACHE to another folder"
    cause = error.__cause__ or error
    responses = [getattr(each, "response", None) for each in (error, cause)]
    status = next((code for response in responses if (code := getattr(response, "status_code", None))), None)
    if status in (401, 403):
        return f"{where} asks for a login that may read this {kind} (HTTP {status}); set HF_TOKEN to a valid token"
    if status == 404:
        return f"{where} has no such {kind}, or lacks one of its files (HTTP 404); check the name and the revision"
    if status:
        return f"{where} answers HTTP {status}; try again later, or name a mirror with HF_ENDPOINT"
    return (
        f"no such folder here, and {where} cannot be reached ({type(cause).__name__}: {str(cause)[:200]}); check the "
        "connection, or name a mirror with HF_ENDPOINT"
    )
