"""Write and read the checkpoints of a run.

A run of one process or of ddp writes its models in the Hugging Face layout. A run whose weights or optimizer differ
between ranks writes shards; see `shards.py`. With `--run.async_save true` a thread writes, and the training goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import active_adapter
from minirlhf.errors import InputError, writes
from minirlhf.manifest import check_files, damage, is_complete, missing, read_manifest
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.pretrained.safe import read_json
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import gather, is_main, rank, say, world_size
from minirlhf.runtime.rendezvous import time_out
from minirlhf.training.checkpoint import (
    STATE,
    TENSORS,
    aside_of,
    load_state,
    put_tensors,
    save_state,
    split_state,
    written_whole,
)
from minirlhf.training.export import export, move_export, say_no_effect
from minirlhf.training.host_copies import HostCopies
from minirlhf.training.state_types import check_state

LARGEST_WEIGHT = 1e9  # no trained weight comes near
MOMENTS = "/moments/"  # in the names of the optimizer's state, the only large tensors beside the weights


# Write


def write_checkpoint(run: Any, folder: Path, state: dict[str, Any], then: Callable[[], None]) -> None:
    """Write a checkpoint of a `Run`; `then` runs on the main process once the checkpoint is complete.

    With `async_save` this function returns as soon as weights and state are copied to the host; the thread checks the
    copied weights before it writes them.
    """
    if run.config.async_save and run.copies is None:
        run.copies = HostCopies()
    write = _prepared(run, folder, state)

    def write_all() -> None:
        with writes(folder):
            write()
            if is_main():
                then()

    run.writing = InBackground(write_all)
    if run.config.async_save:
        run.writing.start()
    else:
        run.writing.run()
        wait(run)


def wait(run: Any) -> None:
    """Wait until the checkpoint in progress is written. All ranks must call it. Raises the error of any rank."""
    if (writing := run.writing) is None:
        return
    run.writing = None
    writing.join()
    errors = gather(None if writing.error is None else f"{type(writing.error).__name__}: {writing.error}")
    if writing.error is not None:
        raise writing.error
    for number, error in enumerate(errors):
        if error is not None:
            raise InputError(f"{run.folder}: rank {number} could not write the checkpoint ({error})")


class InBackground(threading.Thread):
    """A thread that keeps its error. It is no daemon, so a program that ends waits for its last checkpoint."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(name="checkpoint")
        self.write, self.error = write, None

    def run(self) -> None:
        try:
            self.write()
        except BaseException as error:  # shown by `wait`
            self.error = error

    def join(self, timeout: float | None = None) -> None:
        if self.ident is not None:  # it was started
            super().join(timeout)


def _prepared(run: Any, folder: Path, state: dict[str, Any]) -> Callable[[], None]:
    """The function that writes the checkpoint, without a collective. All ranks must call this function."""
    models, files, options = run.trainer.models, run.files, (run.tokenizer, run.config.base)
    if world_size() > 1 and (write := _prepared_shards(run, folder, state)):
        if run.config.export:
            export(run, folder)
        return write
    if run.config.export:
        say_no_effect()
    if not is_main():
        return lambda: None
    if run.copies:
        models = run.copies.of_models(models)
        values, tensors = split_state(state)
        state = put_tensors(values, run.copies.of_tensors(tensors))

    def write() -> None:
        check_sound(run, state["step"], named_weights(models))
        with written_whole(folder, {"step": state["step"]}) as aside:
            for name, model in models.items():
                files.save_trained(model, aside / name, *options)
            save_state(aside, state)

    return write


def _prepared_shards(run: Any, folder: Path, state: dict[str, Any]) -> Callable[[], None] | None:
    """As `_prepared`; None if all ranks hold the same weights and state, so that one process can write all."""
    from minirlhf.training.shards import differs_between_ranks, on_host, own_slices

    values, tensors = split_state(state)
    weights = {f"{name}/{key}": t for name, model in run.trainer.models.items() for key, t in weights_of(model).items()}
    everything = {**weights, **{f"state/{name}": tensor for name, tensor in tensors.items()}}
    if not differs_between_ranks(everything):
        return None
    slices, main = on_host(own_slices(everything), run.copies), agreed(lambda: _tried(folder))
    number, world, aside = rank(), world_size(), aside_of(folder, main)

    def check() -> None:
        own = {key.replace("/", ".", 1): rows for key, (_, _, rows) in slices.items() if key in weights}
        check_sound(run, state["step"], own)

    return lambda: _write_shards(folder, aside, number, world, slices, values, check)


def _tried(folder: Path) -> int:
    """The id of this process, once it has made the folder that the other ranks will wait for, and deleted it again."""
    aside = aside_of(folder, os.getpid())
    with writes(folder):
        aside.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside)
    return os.getpid()


def _write_shards(
    folder: Path,
    aside: Path,
    number: int,
    world: int,
    slices: dict,
    values: dict[str, Any],
    check: Callable[[], None],
) -> None:
    from minirlhf.training.shards import collected, wait_for, write_shard

    if number:
        wait_for(aside.is_dir, f"rank {number}: needed the folder {aside}", time_out())
        write_shard(aside, number, world, slices, check)
        return
    listed: dict[str, Any] = {"step": values["step"]}
    with written_whole(folder, listed) as aside:
        write_shard(aside, number, world, slices, check)
        move_export(folder, aside)
        (aside / STATE).write_text(json.dumps(values) + "\n")
        # the other ranks wait for this rank as long as for any other, so this rank must give up before them
        listed["tensors"] = collected(aside, world, 0.8 * time_out())


def save_final(run: Any, adapter: Path, final: Path) -> None:
    """Write the folders of the finished model of a `Run`. All ranks must call it.

    A sharded model is written weight by weight: no rank ever holds more than one whole weight.
    """
    check_weights(run)
    model, options = next(iter(run.trainer.models.values())), (run.tokenizer, run.config.base)
    for folder in (adapter, final) if is_main() or is_sharded(model) else ():
        save = run.files.save_final if folder == final else run.files.save_trained
        if folder == final or run.files.has_adapter(model):
            # the other ranks of a sharded model take part in gathering, and write nothing
            with written_whole(folder) if is_main() else contextlib.nullcontext(folder) as aside:
                save(model, aside, *options)


def named_weights(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    """MODEL.NAME -> the rows that this rank holds."""
    return {f"{name}.{key}": _local(p) for name, model in models.items() for key, p in model.named_parameters()}


def _local(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint in shards holds: all, or beside adapters the trained weights only."""
    if active_adapter(model) is None:
        return model.state_dict()
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_weights(run: Any) -> None:
    """As `check_sound`, for all weights of a `Run`. All ranks must call it.   Raises: InputError on every rank."""
    error = None
    try:
        check_sound(run, run.step, named_weights(run.trainer.models))
    except InputError as found:
        error = str(found)
    if errors := [text for text in gather(error) if text]:
        raise InputError(errors[0])


def check_sound(run: Any, step: int, named: dict[str, Tensor]) -> None:
    """Raise InputError if a weight is not finite or too large. It reads each weight once."""
    named = {name: p for name, p in named.items() if p.is_floating_point() and p.numel()}
    ends = [torch.stack(p.aminmax()).float() for p in named.values()]  # abs() would write a copy of each weight
    largest = torch.stack(ends).abs().amax(-1).tolist() if named else []
    bad = [f"{name} holds {x:g}" for name, x in zip(named, largest, strict=True) if not x <= LARGEST_WEIGHT]
    if bad:
        raise InputError(
            f"{run.folder}: step {step}: {bad[0]}, needed finite weights of at most {LARGEST_WEIGHT:g}; nothing "
            f"was written, and the last good checkpoint is {last_good(run)}; start from it with a lower learning rate"
        )


def last_good(run: Any) -> str:
    """The last checkpoint of a `Run` that is complete; a thread may be writing a newer one."""
    return str(next(reversed(run.checkpoints()), "none"))


def where(run: Any) -> Callable[[], str]:
    """A function that names the work of a `Run`, for the message of an error. It does not keep the run alive: once the
    run is gone it gives an empty text.
    """
    reference = weakref.ref(run)

    def named() -> str:
        run = reference()
        return f"{run.folder}, step {run.step} (last good checkpoint: {last_good(run)})" if run else ""

    return named


# Read


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
                _local(weight).copy_(_local(stored[f"{name}/{key}"].like(weight)))
