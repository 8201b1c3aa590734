"""What the example programs share before training starts: common flags, the output folder, the rows, the first models."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minirlhf.data.formats import read_rows
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.runtime.distributed import barrier, gather, is_main
from minirlhf.runtime.randomness import seed_everything
from minirlhf.tasks.task import Task, embedded_task, task_from_rows
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.run import RunConfig, finished_model


@dataclass(frozen=True)
class JobConfig:
    output: str | None = None  # [folder] where everything is written; none makes a fresh runs/NAME-001
    resume: bool = False  # [-] go on with the job in `output`: finished stages are reused
    seed: int = 0  # [-] of data, initial weights, shuffling and sampling
    task: str = "reviews"  # [-] embedded task: reviews or arithmetic
    data: str | None = None  # [file] your own rows instead: JSONL or JSON, plain or .gz
    max_refused: float = 0.01  # [share] of your rows that may be unusable before the run stops
    vocab_size: int = 2048  # [tokens] at most, when a tokenizer is trained
    policy: str | None = None  # [folder] start from this model (with its tokenizer) instead of training one
    reward: str | None = None  # [folder] use this reward model instead of training one
    stop_after: Literal["sft", "reward", "ppo"] | None = None  # [stage] end the job there; --resume goes on
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 on a GPU that has it, fp32 elsewhere


def open_output(job: JobConfig, name: str) -> Path:
    """The job's folder: `output`, or the first free runs/NAME-001, agreed on by all processes.

    Raises: InputError if it holds something already and `resume` was not asked for.
    """
    folder = Path(job.output) if job.output else _fresh(Path("runs"), name)
    folder = Path(gather(str(folder))[0])
    problem = ""
    if folder.exists() and not folder.is_dir():
        problem = f"{folder}: needed a folder for --output, got a file; choose another name"
    elif folder.exists() and any(folder.iterdir()) and not job.resume:
        problem = f"{folder}: holds a run already; continue it with --resume or choose another --output"
    barrier()  # every process has looked before the first one writes
    if problem:
        raise InputError(problem)
    return folder


def load_task(job: JobConfig) -> Task:
    """The rows: the embedded task, or the user's file, whose kind and counts are printed."""
    if job.data is None:
        return embedded_task(job.task, job.seed)
    dataset = read_rows(job.data, max_refused=job.max_refused)
    say(dataset.summary())
    return task_from_rows(dataset)


def load_tokenizer(job: JobConfig, task: Task, folder: Path) -> Tokenizer:
    """That of `--policy`, or the one already trained in this folder, or a new one trained on the task's texts."""
    if job.policy:
        return Tokenizer.load(resolve_model(job.policy))
    if (folder / "tokenizer" / "tokenizer.json").exists():
        return Tokenizer.load(folder / "tokenizer")
    tokenizer = Tokenizer.train(task.texts(), job.vocab_size)
    barrier()
    if is_main():
        tokenizer.save(folder / "tokenizer")
    say(f"tokenizer: {tokenizer.vocab_size:,} tokens, {folder / 'tokenizer'}")
    return tokenizer


def new_policy(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> Policy:
    """Random weights, the same for the same seed whatever ran before."""
    seed_everything(seed)
    policy = Policy(Transformer(replace(config, vocab_size=tokenizer.vocab_size)))
    say(f"model: {sum(p.numel() for p in policy.parameters()):,} parameters")
    return policy


def resolve_model(folder: str | Path) -> Path:
    """A model's folder from what a user types: the folder itself, or a finished run whose model is meant."""
    final = finished_model(folder)
    return final if final and not (Path(folder) / "config.json").exists() else Path(folder)


def stage_run(run: RunConfig, job: JobConfig, folder: Path, stage: str) -> RunConfig:
    """The settings of one stage's run: its own folder, resumed if the job is."""
    return replace(run, output=str(folder / stage), resume=job.resume)


def steps_for(steps: int, max_epochs: float, rows: int, batch_size: int) -> int:
    """`steps`, or fewer where they would go over few rows too often."""
    return max(1, min(steps, round(max_epochs * rows / batch_size)))


def write_summary(folder: Path, text: str) -> None:
    if is_main():
        write_whole(folder / "summary.json", text)


def say(text: str) -> None:
    """Print once, not once per process."""
    if is_main():
        print(text, flush=True)


def _fresh(parent: Path, name: str) -> Path:
    taken = [int(m[1]) for p in parent.glob(f"{name}-*") if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", p.name))]
    return parent / f"{name}-{max(taken, default=0) + 1:03d}"
