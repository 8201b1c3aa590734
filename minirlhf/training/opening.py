"""The start of a run: its folder is locked and looked at, then the run begins in it or goes on."""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import barrier, is_main, restarted, shows
from minirlhf.runtime.same_on_ranks import check_same_settings_on_ranks
from minirlhf.training.checkpoint import holds_anything, remove_leftovers, write_whole
from minirlhf.training.journal import Journal
from minirlhf.training.loading import load_checkpoint, newest
from minirlhf.training.lock import lock, unlocks
from minirlhf.training.overwrite import delete_run
from minirlhf.training.progress import EvaluationTable
from minirlhf.training.runs import flat
from minirlhf.training.same_settings import check_same_settings


def open_run(run: Any, settings: str) -> tuple[dict[str, Any], Journal | None, EvaluationTable | None]:
    """Begin a `Run` in an empty folder, or load the last checkpoint of the run in its folder. All ranks call it.

    settings: the text of its config.toml.
    Returns: the state of the run, and on the main process its journal and its table.
    Raises: InputError, see `Run`.
    """
    config = run.config
    asked = {"resume": config.resume, "overwrite": config.overwrite, "the number of steps": len(run.batches)}
    check_same_settings_on_ranks({**flat(tomllib.loads(settings)), **asked})
    with ExitStack() as stack:
        stack.enter_context(unlocks(run.folder))
        agreed(lambda: _lock(run.folder))
        opened = _opened(run, settings)
        stack.pop_all()  # without an error the folder stays locked
        return opened


def _lock(folder: Path) -> None:
    """Lock the folder, unless it is not a run's: nothing is written into such a folder."""
    if not holds_anything(folder) or (folder / "config.toml").exists():
        lock(folder)


def _opened(run: Any, settings: str) -> tuple[dict[str, Any], Journal | None, EvaluationTable | None]:
    path, config = run.folder / "config.toml", run.config
    state = {"step": 0, "done": False, "best": {}}
    if config.overwrite and not restarted():
        delete_run(run.folder, config.resume)
    if holds_anything(run.folder):
        if not path.exists():
            raise InputError(f"{run.folder}: holds files that are not a run's; choose another --output")
        if not (config.resume or restarted()):
            raise InputError(f"{run.folder}: holds a run already; give --resume or choose another --output")
        check_same_settings(path, settings)
        if found := newest(run, run.checkpoints(whole=False)):
            state = load_checkpoint(run, found)
            run.saved = state["step"]
    barrier()  # all ranks must look at the folder before rank 0 writes to it
    if not is_main():
        return state, None, None
    for folder in (run.folder, run.folder / "checkpoints"):
        remove_leftovers(folder)
    if not path.exists():
        write_whole(path, settings)
    journal = Journal(run.folder, state["step"], state.get("records"))
    begun = f"{'resumed' if state['step'] else 'started'} at step {state['step']} of {len(run.batches)}"
    journal.log(begun, show=shows("debug"))
    return state, journal, EvaluationTable(run.folder.name, run.trainer.headline, run.folder / "metrics.jsonl")
