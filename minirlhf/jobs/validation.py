"""Evaluations on the files of `--validation` during a stage: eval/chat/loss is the loss on the rows of the set chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from minirlhf.algorithms.unpaired import single_rows
from minirlhf.data.encoding import EncodedRow
from minirlhf.jobs.given_rows import reads_of
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.steps import held_out_steps
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.distributed import say
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import HELD
from minirlhf.training.run import Trainer

PROMPTS = 128  # of each set, in each evaluation during a run

Evaluate = Callable[[], dict[str, float]]


def with_validation(stage: Any, trainer: Trainer, evaluate: Evaluate | None) -> Evaluate:
    """The evaluation of a `Stage`, and after it the same measures of each validation set as SET/NAME."""
    model = next(iter(trainer.models.values()))
    shape = getattr(model, "transformer", model).config
    sets = {name: rows_of(stage, task, shape) for name, task in stage.job.task.validation.items()}

    def evaluate_all() -> dict[str, float]:
        found, samples = evaluate() if evaluate else {}, list(trainer.samples)
        for name, rows in sets.items():
            measures = measure(with_gold_of(stage, name), trainer, rows)
            found |= {f"{name}/{metric}": value for metric, value in measures.items()}
            samples += [{**sample, "validation": name} for sample in trainer.samples]
        trainer.samples = samples
        return found

    return evaluate_all


def measure(stage: Any, trainer: Trainer, rows: dict[str, Sequence[EncodedRow]]) -> dict[str, float]:
    """The measures of one set: by the trainer on its answers, and of the policy's completions of its prompts."""
    trainer.samples, found = [], {}
    for part, part_rows in rows.items():
        if part == "prompts":
            found |= replace(stage, prompts=part_rows).evaluate(stage.policy, PROMPTS).known()
        else:
            found |= trainer.evaluate(part_rows)
    return found


def with_gold_of(stage: Any, name: str) -> Any:
    """The stage with the exact measure of a validation set: `--gold`, or the check of its answers if it has answers."""
    job, task = stage.job, stage.job.task
    gold = task.gold if job.common.gold else task.validation[name].gold
    return replace(stage, job=replace(job, task=replace(task, gold=gold)))


def rows_of(stage: Any, task: Task, shape: ModelConfig) -> dict[str, list[EncodedRow]]:
    """Part -> the rows of a validation set as ids, as far as the stage can be evaluated on them."""
    samples = ("prompts",) if hasattr(stage, "policy") else ()  # a `PolicyStage` measures completions too
    parts = dict.fromkeys((*reads_of(stage.job.common, stage.section)[:1], *samples))
    job = replace(stage.job, task=replace(task, validation={}))
    rows = {part: encoded(job, part, shape) for part in parts if len(getattr(task, HELD[part]))}
    rows = {part: part_rows for part, part_rows in rows.items() if part_rows}
    if not rows:
        say(f"{task.name}: has no rows that the stage {stage.name} can be evaluated on")
    return rows


def encoded(job: Opened, part: str, shape: ModelConfig) -> list[EncodedRow]:
    """The held-out rows of a part as ids. Rows that do not fit are left out."""
    if part == "steps":
        return held_out_steps(job, shape.max_position_embeddings)
    rows = job.held_out(part, shape)
    return single_rows(rows, shape.max_position_embeddings) if part == "unpaired" else rows
