"""A task made from the rows of a user's file."""

from __future__ import annotations

from minirlhf.data.formats import Dataset, read_rows
from minirlhf.data.splitting import split_rows
from minirlhf.runtime.distributed import say
from minirlhf.tasks.task import Task


def task_from_file(path: str, max_refused: float, ignore_columns: tuple[str, ...]) -> Task:
    """The task of a user's file. The counts, and the columns that nothing reads, are printed."""
    dataset = read_rows(path, max_refused=max_refused, ignore_columns=ignore_columns)
    task = task_from_rows(dataset)
    counts = f"{len(task.prompts):,} prompts to train on, {len(task.held_out_prompts):,} held out"
    say(f"{dataset.summary()}\n{dataset.path}: {counts}")
    return task


def task_from_rows(dataset: Dataset) -> Task:
    """A task from a user's file.

    All stages use preference rows; SFT learns the chosen answer. SFT and sampling use rows {prompt, response}. Only
    sampling uses rows {prompt}.
    """
    training, held_out = split_rows(dataset.rows)
    answer = {"preference": "chosen", "sft": "response"}.get(dataset.kind)

    def sft(rows: list[dict]) -> list[dict]:
        return [{**row, "response": row[answer]} for row in rows] if answer else []

    def pairs(rows: list[dict]) -> list[dict]:
        return rows if dataset.kind == "preference" else []

    def prompts(rows: list[dict]) -> list[dict]:
        return list({row["prompt"]: row for row in rows}.values())

    return Task(
        name=dataset.path,
        sft=sft(training),
        pairs=pairs(training),
        prompts=prompts(training),
        held_out_sft=sft(held_out),
        held_out_pairs=pairs(held_out),
        held_out_prompts=prompts(held_out),
        unit=dataset.unit,
        refused=tuple(f"{dataset.path}: {refusal}" for refusal in dataset.refused),
    )
