"""A task: rows for each stage of RLHF, and exact measures if they exist."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from tqdm import tqdm

from minirlhf.errors import InputError, shown
from minirlhf.rewards.scoring import Gold, Reward
from minirlhf.runtime.distributed import is_main
from minirlhf.tasks import reviews

EMBEDDED = ("reviews", "arithmetic")
# part of a task: (stage that needs it, form of its rows)
STAGES = {
    "sft": ("SFT", "{prompt, response}"),
    "pairs": ("training on pairs", "{prompt, chosen, rejected}"),
    "prompts": ("PPO", "{prompt}"),
}


@dataclass(frozen=True)
class Task:
    name: str
    sft: list[dict]  # {prompt, response}
    pairs: list[dict]  # {prompt, chosen, rejected}
    prompts: list[dict]  # {prompt, ...}
    held_out_sft: list[dict]
    held_out_pairs: list[dict]  # in an embedded task, no label is flipped here
    held_out_prompts: list[dict]
    reward: Reward | None = None  # only if answers can be checked
    gold: Gold | None = None  # only if exact measures exist: (prompts, completions, rows) -> measures
    unit: str = "line"  # what the "line" of a row counts: "line", or "row" of an array
    refused: tuple[str, ...] = ()  # a line for each row of the user's file that was left out

    def texts(self) -> list[str]:
        """All training texts, for the training of a tokenizer. Prompts and responses are separate texts."""
        rows = [*self.sft, *self.pairs, *self.prompts]
        return [row[key] for row in rows for key in ("prompt", "response", "chosen", "rejected") if key in row]

    def need(self, part: str) -> list[dict]:
        """The rows of one part ("sft", "pairs" or "prompts").   Raises: InputError if the task has no such rows."""
        if not getattr(self, part):
            stage, form = STAGES[part]
            raise InputError(
                f"{self.name}: {stage} needs rows {form}, but the task has none; give --data FILE with such rows"
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
    bar = tqdm(writers.items(), desc=f"{name}: writing rows", disable=not is_main())
    parts = {part: write() for part, write in bar}
    held_out_sft = [row | {"response": row["chosen"]} for row in parts["held_out_pairs"]]
    reward = getattr(task, "reward", None)
    return Task(name=name, reward=reward, gold=task.gold, held_out_sft=held_out_sft, **parts)


def _module(name: str) -> ModuleType:
    if name == "arithmetic":
        from minirlhf.tasks import arithmetic

        return arithmetic
    return reviews
