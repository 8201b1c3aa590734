"""Write the checkpoints of a run; loading.py reads them.

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
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import gather, is_main, rank, world_size
from minirlhf.runtime.rendezvous import time_out
from minirlhf.training.checkpoint import (
    STATE,
    aside_of,
    put_tensors,
    save_state,
    split_state,
    written_whole,
)
from minirlhf.training.export import export, move_export, say_no_effect
from minirlhf.training.host_copies import HostCopies

LARGEST_WEIGHT = 1e9  # no trained weight comes near


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
    return {f"{name}.{key}": local_rows(p) for name, model in models.items() for key, p in model.named_parameters()}


def local_rows(tensor: Tensor) -> Tensor:
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
