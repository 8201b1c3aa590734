"""A task: rows for each stage of RLHF, and exact measures if they exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tqdm import tqdm

from minirlhf.errors import InputError, shown
from minirlhf.rewards.scoring import Gold, Reward
from minirlhf.runtime.distributed import shows
from minirlhf.tasks import reviews

EMBEDDED = ("reviews", "arithmetic")
# part of a task: (stage that needs it, form of its rows)
STAGES = {
    "sft": ("SFT", "{prompt, response}"),
    "pairs": ("training on pairs", "{prompt, chosen, rejected}"),
    "prompts": ("sampling", "{prompt}"),
    "unpaired": ("training on single answers", "{prompt, response, label}"),
    "steps": ("training on steps", "{prompt, steps, labels}"),
}


@dataclass(frozen=True)
class Task:
    name: str
    sft: Sequence[dict]  # {prompt, response}
    pairs: Sequence[dict]  # {prompt, chosen, rejected}
    prompts: Sequence[dict]  # {prompt, ...}
    held_out_sft: Sequence[dict]
    held_out_pairs: Sequence[dict]  # in an embedded task, no label is flipped here
    held_out_prompts: Sequence[dict]
    reward: Reward | None = None  # only if answers can be checked
    gold: Gold | None = None  # only if exact measures exist: (prompts, completions, rows) -> measures
    environment: Any = None  # of a task of several turns: tokenizer -> `Episodes`
    unit: str = "line"  # what the "line" of a row counts: "line", or "row" of an array
    refused: tuple[str, ...] = ()  # a line for each row of the user's files that was left out
    unpaired: Sequence[dict] = ()  # {prompt, response, label}
    held_out_unpaired: Sequence[dict] = ()
    steps: Sequence[dict] = ()  # {prompt, steps, labels, response}
    held_out_steps: Sequence[dict] = ()
    validation: dict[str, Task] = field(default_factory=dict)  # name -> held-out rows of `--validation`
    sources: dict[str, str] = field(default_factory=dict)  # part -> its files, if they are not those of `name`
    hint: str = ""  # on the rows of the user's files, for the error of a missing part

    def texts(self) -> Iterator[str]:
        """All training texts, for the training of a tokenizer. Prompts and responses are separate texts."""
        for rows in (self.sft, self.pairs or self.unpaired, self.prompts, self.steps):
            for row in rows:
                yield from (row[key] for key in ("prompt", "response", "chosen", "rejected") if key in row)

    def need(self, part: str) -> Sequence[dict]:
        """The rows of one part, a name in `STAGES`.   Raises: InputError if the task has no such rows."""
        if not len(getattr(self, part)):
            stage, form = STAGES[part]
            raise InputError(
                f"{self.name}: {stage} needs rows {form}, but the task has none{self.hint}; give --data FILE with "
                "such rows"
            )
        return getattr(self, part)


def embedded_task(name: str, seed: int, *, sft_rows: int = 20_000, pair_rows: int = 20_000) -> Task:
    """The task `reviews` or `arithmetic`, a pure function of the arguments.   Raises: InputError for another name."""
    if name not in EMBEDDED:
        known = " or ".join(EMBEDDED)
        raise InputError(f"task: needed {known}, got {shown(name)}; or give your own rows with --data FILE")
    task = _module(name)
    writers = {
        "sft": lambda: task.sft_rows(sft_rows, seed),
        "pairs": lambda: task.preference_rows(pair_rows, seed),
        "prompts": task.training_prompts,
        "held_out_pairs": lambda: task.preference_rows(1024, seed, flipped=0.0, held_out=True),
        "held_out_prompts": task.held_out_prompts,
    }
    bar = tqdm(writers.items(), desc=f"{name}: writing rows", disable=None if shows() else True)
    parts = {part: write() for part, write in bar}
    held_out_sft = [row | {"response": row["chosen"]} for row in parts["held_out_pairs"]]
    reward = getattr(task, "reward", None)
    return Task(name=name, reward=reward, gold=task.gold, held_out_sft=held_out_sft, **parts)


def _module(name: str) -> ModuleType:
    if name == "arithmetic":
        from minirlhf.tasks import arithmetic

        return arithmetic
    return reviews
