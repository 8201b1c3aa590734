"""Early stopping of SFT, for a task that checks answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minirlhf.data.encoding import encode_rows
from minirlhf.evaluation.policies import evaluate_policy
from minirlhf.generation.engine import SamplingConfig
from minirlhf.jobs.data_flags import encoding_options
from minirlhf.jobs.opened import Opened
from minirlhf.model.policy import Policy

LOOKS_EVERY = 50  # steps; with ten evaluations in a run, SFT would go far beyond `stop_at`
SOLVED_PROMPTS = 512  # of the training prompts


def early_stop(job: Opened, policy: Policy, stop_at: float, evaluate: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Arguments of `Stage.run`: the evaluation measures `solved` too, and ends the run once it reaches `stop_at`."""
    return {
        "evaluate": lambda: {**evaluate(), **solved(job, policy)},
        "until": lambda evaluation: evaluation.get("eval/solved", 0.0) >= stop_at,
        "eval_every": LOOKS_EVERY,
    }


def solved(job: Opened, policy: Policy) -> dict[str, float]:
    """{solved}: the share of training prompts whose greedy answer has the full reward; {} if no prompt fits."""
    context = policy.transformer.config.max_position_embeddings
    options = {"context": context, "max_refused": 1.0, **encoding_options(job.common, "prompts")}
    rows = encode_rows(job.tokenizer, job.task.prompts[:SOLVED_PROMPTS], (), **options).rows
    greedy = SamplingConfig(max_tokens=16, temperature=0.0, stop_ids=job.tokenizer.eos_ids)
    measures = evaluate_policy(policy, job.tokenizer, rows, greedy, reward=job.task.reward).known()
    return {"solved": measures["model_reward"]} if measures else {}
