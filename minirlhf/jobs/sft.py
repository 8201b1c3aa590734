"""The first stage of most jobs: a policy by supervised fine-tuning."""

from __future__ import annotations

from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.data.encoding import encode_rows
from minirlhf.evaluation.policies import evaluate_policy
from minirlhf.generation.engine import SamplingConfig
from minirlhf.jobs.models import choose_threads, load_finished, to_device
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.prepare import first_policy, prepare
from minirlhf.jobs.stage import Stage, open_stage
from minirlhf.model.policy import Policy
from minirlhf.runtime.distributed import say

LOOKS_EVERY = 50  # steps; with ten evaluations in a run, SFT would go far beyond `stop_at`
SOLVED_PROMPTS = 512  # of the training prompts


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

    def evaluate() -> dict[str, float]:
        return {**trainer.evaluate(held_out), **({} if stop_at is None else {"solved": solved(job, policy)})}

    run = stage.run(
        trainer,
        batches,
        evaluate if held_out else None,
        until=None if stop_at is None else lambda evaluation: evaluation["eval/solved"] >= stop_at,
        eval_every=None if stop_at is None else LOOKS_EVERY,
    )
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


def solved(job: Opened, policy: Policy) -> float:
    """The share of training prompts whose greedy answer has the full reward."""
    context = policy.transformer.config.max_position_embeddings
    rows = encode_rows(job.tokenizer, job.task.prompts[:SOLVED_PROMPTS], (), context=context).rows
    greedy = SamplingConfig(max_tokens=16, temperature=0.0, stop_ids=job.tokenizer.eos_ids)
    return evaluate_policy(policy, job.tokenizer, rows, greedy, reward=job.task.reward).measures["model_reward"]
