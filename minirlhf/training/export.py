"""Model folders beside a checkpoint in shards (`--run.export true`), so that `--policy` reads every step of a run.

All processes gather the weights before the checkpoint is written, because its writing may be left to a thread. Until
then the folders stand beside the checkpoint; a crash leaves them there, and the next start deletes them.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from minirlhf.errors import writes
from minirlhf.pretrained.model_weights import is_sharded
from minirlhf.runtime.distributed import is_main, say


def export(run: Any, checkpoint: Path) -> None:
    """Write the folder of each model of a `Run` beside the checkpoint to come. All ranks must call it."""
    aside = _aside(checkpoint)
    with writes(checkpoint):
        if is_main():
            shutil.rmtree(aside, ignore_errors=True)
        for name, model in run.trainer.models.items():
            if is_main() or is_sharded(model):  # the other ranks take part in gathering
                run.files.save_trained(model, aside / name, run.tokenizer, run.config.base)


def move_export(checkpoint: Path, into: Path) -> None:
    """Move the folders of `export` into the checkpoint that is being written."""
    aside = _aside(checkpoint)
    if aside.is_dir():
        for folder in aside.iterdir():
            folder.rename(into / folder.name)
        aside.rmdir()


@functools.cache
def say_no_effect() -> None:
    say("--run.export has no effect: checkpoints of this strategy hold model folders already")


def _aside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.export.tmp")
