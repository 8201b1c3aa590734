"""The first stage of most jobs: a policy by supervised fine-tuning."""

from __future__ import annotations

from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.jobs.models import choose_threads, load_finished, to_device
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.prepare import first_policy, prepare
from minirlhf.jobs.stage import Stage, open_stage
from minirlhf.model.policy import Policy
from minirlhf.runtime.distributed import say


def train_sft(job: Opened, stop_at: float | None = None) -> Policy:
    """Train a policy on the task's rows, or load the policy that the job's folder holds already.

    stop_at: end once the policy solves this share of training prompts greedily. Only for a task that checks answers.
    """
    stage = open_stage(job, "sft", "sft")
    if stage.finished:
        return load_finished(stage.finished, job.common, job.device)
    policy = untrained_policy(job, stage)
    rows, held_out = job.rows("sft", policy.transformer.config)
    batches = stage.batches(rows)
    trainer = SFTTrainer(policy, job.tokenizer, stage.config, updates=len(batches))
    options = {"evaluate": lambda: trainer.evaluate(held_out)}
    if stop_at is not None:
        from minirlhf.jobs.early_stop import early_stop  # here, so that the core loads no leaf

        options = early_stop(job, policy, stop_at, **options)
    run = stage.run(trainer, batches, **options)
    for batch in run:
        run.record(trainer.step(batch))
    return policy


def untrained_policy(job: Opened, stage: Stage) -> Policy:
    """A policy with random weights, or `--policy`, prepared as `--train` and `--freeze` ask."""
    policy = first_policy(job.common, job.settings["model"], job.tokenizer)
    if job.common.policy:
        policy = prepare(policy, stage.settings, job.device)
    else:  # adapters on random weights would learn nothing: SFT trains all weights, later stages add the adapters
        policy = to_device(policy, job.common, job.device)
    choose_threads(policy, job.common, job.device)
    say(f"model: {sum(p.numel() for p in policy.parameters()):,} parameters")
    return policy
