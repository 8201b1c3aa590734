"""The reference's log-probs of the rows of a stage, computed before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.algorithms.ref_logps import precompute_ref_logps
from minirlhf.data.cache import cache_folder
from minirlhf.data.encoding import EncodedRow
from minirlhf.jobs.validation import rows_of


def precompute(stage: Any, trainer: Any) -> None:
    """Compute the log-probs of the rows of a `PolicyStage`, or read them in MINIRLHF_CACHE or in the job's folder."""
    shape = trainer.policy.transformer.config
    sets = [rows_of(stage, task, shape) for task in stage.job.task.validation.values()]
    answers = [rows for parts in sets for part, rows in parts.items() if part != "prompts"]
    folder = cache_folder() or stage.job.folder / "ref_logps"
    precompute_ref_logps(trainer, [drawn_rows(stage), stage.held_out, *answers], folder)


def drawn_rows(stage: Any) -> Sequence[EncodedRow]:
    """The rows that the stage trains on: all, or the rows of its batches if these are less than an epoch."""
    batches = stage.batches(stage.rows)
    if len(batches) * batches.batch_size >= len(stage.rows):
        return stage.rows
    return [draw.row for k in range(len(batches)) for draw in batches[k]]
