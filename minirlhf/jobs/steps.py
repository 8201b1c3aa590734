"""The rows of a reward model of steps as ids: to train on, held out, and of `--validation`."""

from __future__ import annotations

from collections.abc import Sequence

from minirlhf.algorithms.process_reward import encode_steps
from minirlhf.data.encoding import EncodedRow
from minirlhf.jobs.data_flags import flags_of
from minirlhf.jobs.opened import Opened
from minirlhf.tasks.steps import as_outcome


def encoded_steps(job: Opened, context: int) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """-> (rows of steps to train on, held-out rows) as ids."""
    return steps_in_ids(job, job.task.need("steps"), context, job.common.max_refused), held_out_steps(job, context)


def held_out_steps(job: Opened, context: int) -> list[EncodedRow]:
    """The held-out rows of steps as ids. They stop no program."""
    return steps_in_ids(job, job.task.held_out_steps, context, max_refused=1.0)


def steps_in_ids(job: Opened, rows: Sequence[dict], context: int, max_refused: float) -> list[EncodedRow]:
    """Rows of steps as ids; with `--kind outcome`, each answer as one step."""
    flags = flags_of(job.common)
    rows = [as_outcome(row) for row in rows] if job.common.kind == "outcome" else rows
    return encode_steps(job.tokenizer, rows, min(context, flags.max_length or context), max_refused, flags.wrap)
