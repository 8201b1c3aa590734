"""A program opens these before its first stage: settings, folder, rows, tokenizer, device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch

from minirlhf.data.encoding import EncodedRow, encode_rows
from minirlhf.errors import InputError
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.settings import JobConfig
from minirlhf.model.config import ModelConfig
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.distributed import gather, is_main, say
from minirlhf.tasks.task import Task, embedded_task
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import is_complete

# part of a task -> response keys
RESPONSES = {"sft": ("response",), "pairs": ("chosen", "rejected"), "unpaired": ("response",), "prompts": ()}


@dataclass(frozen=True)
class Opened:
    section: str  # name of the program's own settings
    settings: dict[str, Any]  # section -> dataclass
    folder: Path
    task: Task
    tokenizer: Tokenizer
    device: torch.device
    started: float  # seconds, of time.perf_counter()
    given_reward: Reward | None = None  # of `--reward`, or the task's own check of answers
    environment: Any = None  # of `--environment` or of the task: `Episodes`
    encoded: dict = field(default_factory=dict)  # rows as ids that no stage has taken yet

    @property
    def common(self) -> JobConfig:
        """The settings that all programs share."""
        return self.settings["job"]

    @property
    def config(self) -> Any:
        """The program's own settings."""
        return self.settings[self.section]

    @property
    def seed(self) -> int:
        return self.common.seed

    def say(self, text: str) -> None:
        """Print on the main process: once, not once per process."""
        say(text)

    def rows(self, part: str, model: ModelConfig, reserve: int = 1) -> tuple[list[EncodedRow], list[EncodedRow]]:
        """One part of the task, a key of `RESPONSES`, as ids -> (rows to train on, held-out rows).

        reserve: tokens of the model's context that a prompt to train on must leave free.
        """
        key = part, model.max_position_embeddings, reserve
        if key not in self.encoded:
            self.encode(part, model, reserve)
        return self.encoded.pop(key)

    def encode(self, part: str, model: ModelConfig, reserve: int) -> list[str]:
        """Keep a part as ids until a stage takes it -> a reason for each row that is left out."""
        limits = {"max_refused": self.common.max_refused, "reserve": reserve, **self._limits(part, model)}
        train = encode_rows(self.tokenizer, self.task.need(part), RESPONSES[part], **limits)
        say(train.summary(f"{limits['source']}: {part} in ids"))
        if not train.rows:
            raise InputError(f"{limits['source']}: needed {part} to train on, all rows are refused: {train.refused[0]}")
        self.encoded[part, model.max_position_embeddings, reserve] = train.rows, self.held_out(part, model)
        return train.refused

    def held_out(self, part: str, model: ModelConfig) -> list[EncodedRow]:
        """The held-out rows of one part as ids. A row that does not fit is left out: it never stops the program."""
        rows, limits = getattr(self.task, f"held_out_{part}"), self._limits(part, model, held_out=True)
        encoded = encode_rows(self.tokenizer, rows, RESPONSES[part], max_refused=1.0, **limits)
        name = f"{limits['source']}: held-out {part}"
        if encoded.refused or not encoded.rows:
            say(encoded.summary(name) + ("" if encoded.rows else f"\n{name}: none, so nothing is evaluated on them"))
        return encoded.rows

    def _limits(self, part: str, model: ModelConfig, held_out: bool = False) -> dict[str, Any]:
        from minirlhf.jobs.data_flags import encoding_options  # here, so that the core loads no leaf

        own = encoding_options(self.common, part, held_out) | {"source": self.task.sources.get(part, self.task.name)}
        return {"context": model.max_position_embeddings, "vocabulary": model.vocab_size, "unit": self.task.unit, **own}


def load_task(job: JobConfig) -> Task:
    """The embedded task of `--task`."""
    return embedded_task(job.task, job.seed)


def load_tokenizer(job: JobConfig, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The tokenizer of `--policy`, or of the job's folder, or a new tokenizer trained on the texts."""
    if job.policy:
        from minirlhf.pretrained.weights import read_config

        read_config(resolve_model(job.policy))  # refuses a folder without a model
        return Tokenizer.load(resolve_model(job.policy)).with_template(job.template, job.template_variables)
    if is_complete(folder / "tokenizer"):
        return Tokenizer.load(folder / "tokenizer")
    # one process trains the tokenizer, all processes read it
    trained = gather(Tokenizer.train(texts, job.vocab_size).backend.to_str() if is_main() else "")[0]
    return Tokenizer(tokenizers.Tokenizer.from_str(trained))
