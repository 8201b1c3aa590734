"""A task made from the rows of a user's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from minirlhf.data.chosen import Chosen, choose, join
from minirlhf.data.formats import Dataset
from minirlhf.data.mixing import mix
from minirlhf.data.splitting import HELD_OUT, split_rows
from minirlhf.rewards.answers import exact_match
from minirlhf.tasks.task import STAGES, Task

HELD = {part: f"held_out_{part}" for part in STAGES}  # part of a task -> name of its held-out rows


def task_from_rows(dataset: Dataset, held_out: float = HELD_OUT) -> Task:
    """A task from the rows of one source. `PARTS` says which stages can use which kind of rows.

    held_out: share or number of the rows to hold out; see `split_rows`.
    """
    training, held = split_rows(dataset.rows, held_out)
    other_kind = dataset.kind in ("unpaired", "steps", "text")
    return Task(
        name=dataset.path,
        unit=dataset.unit,
        refused=tuple(f"{dataset.path}: {refusal}" for refusal in dataset.refused),
        gold=gold_answers if has_answers(held or training) else None,
        hint=f" (its rows are {dataset.kind} rows; --as reads them as another kind)" if other_kind else "",
        **parts_of(dataset.kind, training),
        **{HELD[part]: rows for part, rows in parts_of(dataset.kind, held).items()},
    )


def parts_of(kind: str, rows: Sequence[dict]) -> dict[str, Sequence[dict]]:
    """Part of a task -> the rows of one kind that it can use."""
    makes = PARTS[kind]
    return {part: makes[part](rows) if part in makes else [] for part in STAGES}


def with_response(key: str) -> Callable[[Sequence[dict]], Sequence[dict]]:
    def rows_of(rows: Sequence[dict]) -> Sequence[dict]:
        return choose(rows, range(len(rows)), lambda row: {**row, **answer_of(row, key)})

    return rows_of


def both_answers(rows: Sequence[dict]) -> Sequence[dict]:
    """Two rows {prompt, response, label} of each pair: the chosen answer is liked, the rejected answer is not."""

    def side(number: int) -> dict:
        row, key = rows[number // 2], ("chosen", "rejected")[number % 2]
        return {**row, **answer_of(row, key), "label": key == "chosen"}

    numbers = range(2 * len(rows))
    return Chosen(numbers, numbers, side)  # a view: most programs do not use it


def answer_of(row: dict, key: str) -> dict:
    """An answer of a row as its "response", with its turns if it has turns."""
    turns = {"response_turns": row[f"{key}_turns"]} if f"{key}_turns" in row else {}
    return {"response": row[key], **turns}


def once(rows: Sequence[dict]) -> Sequence[dict]:
    """Each prompt once, with its last row."""
    checksums = (blake2b(row["prompt"].encode(), digest_size=16).digest() for row in rows)  # prompts may be long
    return choose(rows, list({checksum: i for i, checksum in enumerate(checksums)}.values()))


def joined_steps(rows: Sequence[dict]) -> Sequence[dict]:
    """The steps of an answer are its response: a tokenizer learns this text."""
    return choose(rows, range(len(rows)), lambda row: {**row, "response": "".join(row["steps"])})


def unchanged(rows: Sequence[dict]) -> Sequence[dict]:
    return rows


# kind of rows -> part of the task -> the rows of this part
PARTS: dict[str, dict[str, Callable[[Sequence[dict]], Sequence[dict]]]] = {
    "sft": {"sft": with_response("response"), "prompts": once},
    "preference": {"sft": with_response("chosen"), "pairs": unchanged, "prompts": once, "unpaired": both_answers},
    "unpaired": {"unpaired": unchanged, "prompts": once},
    "steps": {"steps": joined_steps, "prompts": once},
    "prompt": {"prompts": once},
    "text": {"sft": unchanged},
}


def mixed(tasks: Sequence[Task], strategy: str = "concat", weights: Sequence[float] = (), seed: int = 0) -> Task:
    """Several tasks as one. Each part mixes the sources that have such rows; held-out rows are all kept.

    weights: of each task; see `mixing.counts`. The rows keep the name of their file as "file".
    """
    if len(tasks) == 1 and strategy != "weighted":
        return tasks[0]
    named = [with_names(task) for task in tasks]
    parts: dict[str, Sequence[dict]] = {}
    for part, held_out in HELD.items():
        have = [i for i, task in enumerate(named) if len(getattr(task, part))]
        its_weights = [weights[i] for i in have] if weights else ()
        parts[part] = mix([getattr(named[i], part) for i in have], strategy, its_weights, seed) if have else []
        parts[held_out] = join([getattr(task, held_out) for task in named])
    if strategy == "concat":
        parts |= {part: once(parts[part]) for part in ("prompts", HELD["prompts"])}
    return Task(
        name=", ".join(task.name for task in tasks),
        unit=tasks[0].unit,
        refused=tuple(line for task in tasks for line in task.refused),
        gold=gold_answers if all(task.gold for task in tasks) else None,
        hint="".join(dict.fromkeys(task.hint for task in tasks)),
        **parts,
    )


def with_names(task: Task) -> Task:
    """The task with its name in every row, as "file"."""

    def named(rows: Sequence[dict]) -> Sequence[dict]:
        return choose(rows, range(len(rows)), lambda row: {"file": task.name, **row})

    return replace(task, **{name: named(getattr(task, name)) for name in (*HELD, *HELD.values())})


def has_answers(rows: Sequence[dict]) -> bool:
    """True if every row has an answer that can be checked: a number, or text."""
    answers = (row.get("answer") for row in rows)
    return len(rows) > 0 and all(
        isinstance(x, str | int | float) and not isinstance(x, bool) and str(x).strip() for x in answers
    )


def gold_answers(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measure of answers that can be checked: gold_reward is 1 if the answer is right, else 0."""
    return {"gold_reward": [float(score or 0) for score in exact_match(prompts, completions, rows)]}
