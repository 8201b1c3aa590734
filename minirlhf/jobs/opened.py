"""A program opens these before its first stage: settings, folder, rows, tokenizer, device."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minirlhf.data.encoding import EncodedRow, encode_rows
from minirlhf.errors import InputError
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.settings import JobConfig
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.distributed import barrier, gather, is_main, say
from minirlhf.tasks.task import Task, embedded_task
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import holds_anything, is_complete, written_whole

RESPONSES = {"sft": ("response",), "pairs": ("chosen", "rejected"), "prompts": ()}  # part of a task -> response keys


@dataclass(frozen=True)
class Opened:
    section: str  # name of the program's own settings
    settings: dict[str, Any]  # section -> dataclass
    folder: Path
    task: Task
    tokenizer: Tokenizer
    device: torch.device
    started: float  # seconds, of time.perf_counter()
    checked: dict[tuple, tuple] = field(default_factory=dict)  # results of `rows` for later stages

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
        """One part of the task ("sft", "pairs", "prompts") as ids -> (rows to train on, held-out rows).

        reserve: tokens of the model's context that a prompt to train on must leave free.
        """
        context, name = model.max_position_embeddings, self.task.name
        if found := self.checked.pop((part, context, reserve), None):
            return found
        limits = {"max_refused": self.common.max_refused, "reserve": reserve, **self._limits(model)}
        train = encode_rows(self.tokenizer, self.task.need(part), RESPONSES[part], **limits)
        say(train.summary(f"{name}: {part} in ids"))
        if not train.rows:
            raise InputError(f"{name}: needed {part} to train on, but all rows are refused: {train.refused[0]}")
        return train.rows, self.held_out(part, model)

    def held_out(self, part: str, model: ModelConfig) -> list[EncodedRow]:
        """The held-out rows of one part as ids. A row that does not fit is left out: it never stops the program."""
        rows, name = getattr(self.task, f"held_out_{part}"), f"{self.task.name}: held-out {part}"
        encoded = encode_rows(self.tokenizer, rows, RESPONSES[part], max_refused=1.0, **self._limits(model))
        if encoded.refused or not encoded.rows:
            say(encoded.summary(name) + (", so nothing is evaluated on them" if not encoded.rows else ""))
        return encoded.rows

    def _limits(self, model: ModelConfig) -> dict[str, Any]:
        return {"context": model.max_position_embeddings, "vocabulary": model.vocab_size, "source": self.task.name}


def open_output(job: JobConfig, name: str) -> Path:
    """The job's folder, the same in all processes: `output`, or a fresh runs/NAME-001, or the newest with `resume`.

    Raises: InputError if the folder holds files and `resume` is not set.
    """
    path, problem = gather(_choose_output(job, name) if is_main() else None)[0]
    if problem:
        raise InputError(f"{path}: {problem}")
    return Path(path)


def _choose_output(job: JobConfig, name: str) -> tuple[str, str]:
    """-> (the folder's path, the reason to refuse it or ""). No folder is made yet, because the job may be refused."""
    taken = sorted(Path("runs").glob(f"{name}-[0-9][0-9][0-9]"))
    number = int(taken[-1].name[-3:]) if taken else 0
    newest = taken[-1] if taken and job.resumes else Path("runs") / f"{name}-{number + 1:03d}"
    folder = Path(job.output or newest)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return str(folder), f"needed a folder for --output, but {existing} is not a writable folder; choose another"
    if holds_anything(folder) and not job.resumes:
        return str(folder), "holds a run already; give --resume or choose another --output"
    if job.resume and not holds_anything(folder):
        say(f"{folder}: nothing to resume, starting afresh")
    return str(folder), ""


def load_task(job: JobConfig) -> Task:
    """The embedded task, or a task from the rows of the user's file. The counts of a file are printed."""
    if job.data is None:
        return embedded_task(job.task, job.seed)
    from minirlhf.data.formats import read_rows
    from minirlhf.tasks.user_rows import task_from_rows

    dataset = read_rows(job.data, max_refused=job.max_refused)
    task = task_from_rows(dataset)
    counts = f"{len(task.prompts):,} prompts to train on, {len(task.held_out_prompts):,} held out"
    say(f"{dataset.summary()}\n{dataset.path}: {counts}")
    return task


def load_tokenizer(job: JobConfig, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The tokenizer of `--policy`, or of the job's folder, or a new tokenizer trained on the texts."""
    if job.policy:
        from minirlhf.pretrained.weights import read_config

        read_config(resolve_model(job.policy))  # refuses a folder without a model
        return Tokenizer.load(resolve_model(job.policy)).with_template(job.template, job.template_variables)
    if is_main() and not is_complete(folder / "tokenizer"):
        tokenizer = Tokenizer.train(texts, job.vocab_size)
        with written_whole(folder / "tokenizer") as aside:
            tokenizer.save(aside)
    barrier()  # one process trains the tokenizer, all processes read it
    tokenizer = Tokenizer.load(folder / "tokenizer")
    say(f"tokenizer: {tokenizer.vocab_size:,} tokens, {folder / 'tokenizer'}")
    return tokenizer
