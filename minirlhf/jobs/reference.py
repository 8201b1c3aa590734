"""The reference's log-probs of all rows of a stage, computed before its first step."""

from __future__ import annotations

from typing import Any

from minirlhf.algorithms.ref_logps import precompute_ref_logps
from minirlhf.data.cache import cache_folder
from minirlhf.jobs.validation import rows_of


def precompute(stage: Any, trainer: Any) -> None:
    """Compute the log-probs of the rows of a `PolicyStage`, or read them in MINIRLHF_CACHE or in the job's folder."""
    shape = trainer.policy.transformer.config
    sets = [rows_of(stage, task, shape) for task in stage.job.task.validation.values()]
    answers = [rows for parts in sets for part, rows in parts.items() if part != "prompts"]
    folder = cache_folder() or stage.job.folder / "ref_logps"
    precompute_ref_logps(trainer, [stage.rows, stage.held_out, *answers], folder)
