"""The folder of a job: found first, taken once nothing is left to refuse, so that a refused job leaves no folder.
A program that writes its results once takes an empty folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.jobs.settings import JobConfig
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import is_main, restarted, say
from minirlhf.runtime.remembered import recall, remember
from minirlhf.training.checkpoint import holds_anything, remove_leftovers, write_whole
from minirlhf.training.lock import lock

TAKEN = "holds a run already; give --resume or choose another --output"
FOREIGN = "holds files that are no run's; choose another --output"


def find_output(job: JobConfig, name: str) -> Path:
    """The job's folder, the same in all processes: `output`, or a fresh runs/NAME-001, or the newest with `resume`.

    A job that torchrun has restarted finds its own folder again.
    Raises: InputError if the folder holds files and `resume` is not set.
    """
    return Path(agreed(lambda: str(_find(job, name))))


def take_output(folder: Path, job: JobConfig, name: str, first: str) -> Path:
    """Make the folder with the folder of the first stage in it, and lock it -> the job's folder.

    Half-written files of an earlier start that was killed are deleted.

    Jobs that start together never share a folder: only one of them can make the folder of the first stage. A job
    without `output` then takes the next number.
    """
    return Path(agreed(lambda: str(_take(folder, job, name, first))))


def check_empty(output: str | None) -> None:
    """Raise InputError if the folder of results cannot be made or holds files. None: a fresh folder in runs."""
    check_can_be_made(folder := Path(output or "runs"))
    if output is not None and holds_anything(folder):
        raise InputError(f"{output}: holds files already; choose another --output")


def make_empty(output: str | None, name: str) -> Path:
    """Make the folder of results: `output`, or a fresh runs/NAME-001. It is the same in all processes.

    Two programs that end together never share a folder. If another program has taken `output` since the start, the
    results go to a fresh folder, and a line says so.
    """
    return Path(agreed(lambda: str(_make_empty(output, name))))


def check_can_be_made(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise InputError(
            f"{folder}: needed a folder for --output, but {existing} is not a writable folder; choose another"
        )


def write_refused(folder: Path, refused: list[str]) -> None:
    """Write a line for each row that was left out to refused.txt."""
    if refused and is_main():
        write_whole(folder / "refused.txt", "".join(f"{line}\n" for line in refused))
        say(f"every row that was left out: {folder / 'refused.txt'}")


def _find(job: JobConfig, name: str) -> Path:
    given = _given(job, name)
    folder = given or _next(name)
    check_can_be_made(folder)
    if given is None:  # another job may take this number at any time; `take_output` then takes the next
        return folder
    try:
        begun = folder.exists() and holds_anything(folder)
    except OSError as error:  # such as a name that is too long
        raise _not_made(folder, error) from None
    if begun and not job.resumes:
        known = *folder.glob("config.toml"), *folder.glob("*/config.toml"), *folder.glob("tokenizer")
        raise InputError(f"{folder}: {TAKEN if known else FOREIGN}")
    if job.resume and not begun:
        say(f"{folder}: nothing to resume, starting afresh")
    return folder


def _given(job: JobConfig, name: str) -> Path | None:
    """The folder that the job must take: `output`, or its own if torchrun has restarted it, or with `resume` the newest
    one. None: a fresh one.
    """
    if job.output is not None:
        return Path(job.output)
    if restarted() and (own := recall(f"folder of {name}")):
        return Path(own)
    taken = _numbers(name)
    return taken[-1] if taken and job.resume else None


def _take(folder: Path, job: JobConfig, name: str, first: str) -> Path:
    given = _given(job, name)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=given is not None)
            lock(folder)
            for part in (folder, *folder.glob("*/"), *folder.glob("*/checkpoints")):
                remove_leftovers(part)
            (folder / first).mkdir(exist_ok=bool(job.resumes))
        except FileExistsError:
            if given is not None:
                raise InputError(f"{folder}: {TAKEN}") from None
            folder = _next(name)
        except (OSError, RecursionError) as error:
            raise _not_made(folder, error) from None
        else:
            remember(f"folder of {name}", str(folder))
            return folder


def _make_empty(output: str | None, name: str) -> Path:
    folder = Path(output) if output else _next(name)
    while True:
        try:
            check_can_be_made(folder)
            folder.mkdir(parents=True, exist_ok=str(folder) == output)
            lock(folder)
            remove_leftovers(folder)
            check_empty(str(folder))
            return folder
        except FileExistsError:
            folder = _next(name)
        except OSError as error:
            raise _not_made(folder, error) from None
        except InputError as error:
            if output is None or folder != Path(output):
                raise
            folder = _next(name)  # the results may have taken hours
            say(f"{error}: results go to {folder} instead")


def _not_made(folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or "too many folders in folders"
    return InputError(f"{folder}: needed a folder for --output, got: {reason}; choose another")


def _numbers(name: str) -> list[Path]:
    """The folders runs/NAME-NNN, in the order of their numbers."""
    found = [path for path in Path("runs").glob(f"{name}-*") if re.fullmatch(r"\d{3,}", path.name[len(name) + 1 :])]
    return sorted(found, key=lambda path: int(path.name[len(name) + 1 :]))


def _next(name: str) -> Path:
    taken = _numbers(name)
    number = int(taken[-1].name[len(name) + 1 :]) if taken else 0
    return Path("runs") / f"{name}-{number + 1:03d}"
