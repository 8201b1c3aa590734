"""A job that takes one step of each stage, in memory. It opens no run, so nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from minirlhf.cli.work import Work, fit_reward, sft
from minirlhf.data.batches import Draw
from minirlhf.data.dealing import dealt, length
from minirlhf.errors import InputError
from minirlhf.evaluation.policies import Report
from minirlhf.foreign import allocator_error
from minirlhf.jobs.given_models import scorer_of
from minirlhf.jobs.job import Job
from minirlhf.jobs.models import load_finished
from minirlhf.jobs.reward_model import untrained_reward_model
from minirlhf.jobs.sft import untrained_policy
from minirlhf.jobs.stage import open_stage
from minirlhf.model.policy import Policy, copy_of
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.distributed import say
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import HELD

HELD_OUT = 8  # rows of each part to evaluate on


@contextmanager
def noted(findings: list[str], who: str = "") -> Iterator[None]:
    """Add the InputError of the block to the findings, unless they have it already, and go on after the block."""
    try:
        yield
    except InputError as error:
        if (text := f"{who}{error}") not in findings:
            findings.append(text)
    except (MemoryError, RuntimeError) as error:
        if not (reason := allocator_error(error)):
            raise
        findings.append(
            f"{who}{reason}; lower microbatch_tokens or batch_size, or give --train lora or --gradient_checkpointing "
            "full"
        )


@dataclass(frozen=True)
class Rehearsal(Job):
    findings: list[str] = field(default_factory=list)  # what would stop the job

    def policy(self, stop_at: float | None = None) -> Policy:
        """The policy after one step of SFT, or `--policy`."""
        if self.common.policy:
            return self.base()
        stage = open_stage(self, "sft", "sft")
        if stage.finished:
            return load_finished(stage.finished, self.common, self.device)
        policies = []
        with noted(self.findings, "sft: "):
            for work in sft(self):
                policies.append(work.trainer.models["policy"])
                self.take_step(work)
        return policies[0] if policies else untrained_policy(self, stage)

    def reward(self, policy: Policy) -> tuple[Reward, float | None]:
        """The given reward, or a reward model after one step."""
        if self.given_reward or self.environment:
            return self.given_reward, None
        stage = open_stage(self, "reward", "reward_model")
        model = untrained_reward_model(self, stage, copy_of(policy).requires_grad_(True).transformer)
        with noted(self.findings, "reward: "):
            self.take_steps(fit_reward(self, stage, model))
        return scorer_of(self, model), None

    def report(self, title: str, before: Report, after: Report, **extra: float | None) -> None:
        """Nothing to report: the models have hardly learned."""

    def say(self, text: str) -> None:
        """The lines of a program are about files that do not exist."""

    def take_steps(self, works: Generator) -> None:
        for work in works:
            self.take_step(work)

    def take_step(self, work: Work) -> None:
        """One step on the longest rows: if they fit into memory, so do the others.

        Note a loss or gradient that is not a finite number, as a run would.
        """
        name, rows, started = work.stage.name, work.batches.rows, time.perf_counter()
        longest = sorted(range(len(rows)), key=lambda i: -length(rows[i]))[: work.batches.batch_size]
        draws = [Draw(rows[i], i, 0) for i in (longest * work.batches.batch_size)[: work.batches.batch_size]]
        metrics = work.trainer.step(dealt(draws, work.trainer.config))
        for key in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(key, 0.0)):
                self.findings.append(f"{name}: needed a finite {key}, got {metrics[key]}; look at the longest rows")
        seconds, steps = time.perf_counter() - started, len(work.batches)
        tokens = length(rows[longest[0]])
        loss = f", loss {metrics['loss']:.3f}" if "loss" in metrics else ""
        say(
            f"{name}: a step on {len(draws)} of the longest rows, up to {tokens:,} tokens: {seconds:.1f} s{loss}; "
            f"{steps:,} steps of this length take {duration(seconds * steps)}"
        )


def rehearse(job: Rehearsal, parts: Callable[[Job], Generator]) -> None:
    """Take one step of each stage, and evaluate before and after on a few held-out rows."""
    if hasattr(job.common, "student_steps") and not job.common.student:  # of distillation
        job = replace(job, settings={**job.settings, "job": replace(job.common, student_steps=1)})
    job.take_steps(parts(job))


def with_few_held_out(task: Task) -> Task:
    """The task with a few held-out rows of each part, because an evaluation may take as long as many steps."""
    return replace(task, **{part: getattr(task, part)[:HELD_OUT] for part in HELD.values()})


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
