"""Read the checkpoints that saving.py wrote: the newest whole checkpoint of a run, its models and its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError
from minirlhf.manifest import check_files, damage, is_complete, missing, read_manifest
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.pretrained.safe import read_json
from minirlhf.runtime.distributed import gather, is_main, rank, say, world_size
from minirlhf.training.checkpoint import (
    STATE,
    TENSORS,
    load_state,
    put_tensors,
)
from minirlhf.training.saving import local_rows, weights_of
from minirlhf.training.state_types import check_state

MOMENTS = "/moments/"  # in the names of the optimizer's state, the only large tensors beside the weights


def newest(run: Any, steps: list[Path]) -> Path | None:
    """The checkpoint to resume from: the newest. steps: all folders of checkpoints, oldest first.

    Raises: InputError for a damaged checkpoint, unless `resume` is "previous": then the newest whole checkpoint before
    it is taken, and the damaged checkpoints are moved aside.
    """
    final = run.folder / "model"
    if final.exists() and (fault := missing(final)):
        raise InputError(f"{final}: damaged: {fault}; move it away, and `--resume` writes it again")
    for path in steps[:-1]:
        if not is_complete(path):
            say(f"{path}: damaged, and not used; delete it")
    damaged = []
    while steps and (fault := agreed_damage(steps[-1])):
        damaged.append(steps.pop())
        before = steps[-1].name if steps else "no checkpoint"
        say(f"{damaged[-1]}: damaged: {fault}")
        if run.config.resume != "previous":
            raise InputError(
                f"{damaged[-1]}: damaged: {fault}; `--resume previous` goes on from the newest whole checkpoint before "
                f"it ({before}), and keeps the damaged checkpoint in a folder beside"
            )
    if damaged:
        from minirlhf.training.going_back import set_aside

        if not steps:
            raise InputError(f"{run.folder}: all checkpoints are damaged; restore one, or choose another --output")
        if is_main():
            kept = set_aside(run.folder, damaged)
            say(f"{run.folder}: resumes from {steps[-1].name}; the damaged checkpoints are in {kept}")
    return steps[-1] if steps else None


def agreed_damage(folder: Path) -> str | None:
    """The first fault of a folder, the same on all ranks: each rank reads its share of the files."""
    try:
        names = sorted(read_manifest(folder)["files"])[rank() :: world_size()]
    except (OSError, ValueError):
        names = []
    return next((fault for fault in gather(damage(folder, names)) if fault), None)


def load_checkpoint(run: Any, folder: Path) -> dict[str, Any]:
    """Load the models and the trainer of a `Run` from a checkpoint -> its state.

    Raises: InputError if it is the checkpoint of another model or of another algorithm.
    """
    load_models(run, folder)
    in_parts = has_shards(folder) or any(map(is_sharded, run.trainer.models.values()))
    state = read_state(folder, lazy=in_parts)
    try:
        step, best = state["step"], {**state["best"]}
        if type(step) is not int or type(state["done"]) is not bool or not 0 <= step <= len(run.batches):
            raise ValueError(f"step {step}, done {state['done']}")
        if best and not (type(best["step"]) is int and float(best["value"]) <= 1e400 and best["since"] >= 0):
            raise ValueError(f"best {best}")
        check_state(state["trainer"], run.trainer.state_dict())
        run.trainer.load_state_dict(state["trainer"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"{folder / STATE}: needed the state of this run's algorithm, got {type(error).__name__}: {error}; "
            "resume with the program and the settings that wrote it, or from another checkpoint"
        ) from None
    return state


def read_state(folder: Path, lazy: bool) -> dict[str, Any]:
    """The state in a checkpoint of any layout. lazy: moments of the optimizer are `StoredTensor`s, not yet read."""
    if not (has_shards(folder) or lazy):
        return load_state(folder)
    from minirlhf.training.shards import stored_tensors, tensors_of_file

    stored = {name.removeprefix("state/"): t for name, t in stored_tensors(folder).items() if name.startswith("state/")}
    check_files(folder, "resume from another checkpoint")
    stored = stored or tensors_of_file(folder, TENSORS)
    values = read_json(folder / STATE, "the state of a run")
    tensors = {name: t if lazy and MOMENTS in name else t.whole() for name, t in stored.items()}
    try:
        return put_tensors(values, tensors)
    except AttributeError:
        raise InputError(f"{folder / STATE}: needed the state of a run, which has an object for each tensor") from None


def has_shards(folder: Path) -> bool:
    return "tensors" in read_manifest(folder)


def load_models(run: Any, folder: Path) -> None:
    """Load the weights of all models of a `Run` from a checkpoint of any layout."""
    if not has_shards(folder):
        for name, model in run.trainer.models.items():
            run.files.load_trained(model, folder / name)
        return
    from minirlhf.training.shards import stored_tensors

    stored = stored_tensors(folder)
    for name, model in run.trainer.models.items():
        weights = weights_of(model)
        found = {key.partition("/")[2] for key in stored if key.startswith(f"{name}/")}
        if odd := sorted(found ^ weights.keys()):
            where = "this model" if odd[0] in found else "the checkpoint"
            raise InputError(f"{folder}: {odd[0]} of {name} is not in {where}; it is a checkpoint of another model")
        with torch.no_grad():
            for key, weight in weights.items():
                local_rows(weight).copy_(local_rows(stored[f"{name}/{key}"].like(weight)))
