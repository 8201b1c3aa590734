"""RLHF from end to end: tokenizer, SFT, reward model, PPO, and what it changed.

    torchrun examples/ppo.py                                  # the embedded task: no data, no GPU, about a minute
    torchrun examples/ppo.py --data rows.jsonl                # your own preference pairs
    torchrun examples/ppo.py --policy DIR --reward DIR        # PPO alone, from models you have
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from reward_model import train_reward_model
from sft import train_sft

from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches, encode_rows
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import Report, evaluate_policy, side_by_side
from minirlhf.model import ModelConfig, Policy, copy_of, load_policy, load_reward_model
from minirlhf.rewards import Reward, RewardModelScorer
from minirlhf.runtime import session
from minirlhf.tasks.job import (
    JobConfig,
    load_task,
    load_tokenizer,
    open_output,
    resolve_model,
    say,
    stage_run,
    write_summary,
)
from minirlhf.tasks.task import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunConfig, finished_model, parse_settings
from minirlhf.training.metrics import metrics_help, table

SETTINGS = {
    "": JobConfig,
    "model": ModelConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "run": RunConfig,
}
EVALUATION_PROMPTS = 1024  # at the end; 128 of them while it runs


def train_ppo(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, reward: Reward, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """PPO from `policy` against `reward` -> how the policy wrote before and after."""
    job, config = settings[""], settings["ppo"]
    fit = {"context": policy.transformer.config.max_position_embeddings, "reserve": config.max_tokens}
    rows = encode_rows(tokenizer, task.need("prompts", "PPO"), (), **fit, max_refused=job.max_refused)
    held_out = encode_rows(tokenizer, task.held_out_prompts[:EVALUATION_PROMPTS], (), **fit, max_refused=job.max_refused)
    say(rows.summary("prompts"))

    ref_policy = copy_of(policy)
    policy = Policy(policy.transformer, value_head=True).to(device)
    trainer = PPOTrainer(policy, ref_policy, reward, tokenizer, config, seed=job.seed)
    batches = Batches(rows.rows, batch_size=config.batch_size, steps=config.steps, seed=job.seed, stream="ppo")

    def evaluate(policy: Policy, prompts: int = EVALUATION_PROMPTS) -> Report:
        sampling = config.sampling(tokenizer.eos_id)
        measure = {"reward": reward, "ref_policy": ref_policy, "gold": task.gold, "seed": job.seed}
        return evaluate_policy(policy, tokenizer, held_out.rows[:prompts], sampling, **measure)

    def progress() -> dict[str, float]:
        measures = evaluate(policy, prompts=128).measures
        return {**{name: value for name, value in measures.items() if value is not None}, "score": measures["model_reward"]}

    before = evaluate(ref_policy)
    if finished := finished_model(folder / "ppo"):
        say(f"ppo: finished already, {finished}")
        return before, evaluate(load_policy(finished).to(device))
    run = Run(
        stage_run(settings["run"], job, folder, "ppo"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=progress,
    )
    for batch in run:
        run.record(trainer.step(batch))
    return before, evaluate(policy)


def report(folder: Path, before: Report, after: Report, accuracy: float | None, seconds: float) -> None:
    """Show what PPO changed, and write summary.json."""
    names = ("gold_reward", "model_reward", "grammatical", "length", "distinct_2")
    labels = {"gold_reward": "gold reward", "model_reward": "reward model's score", "grammatical": "share grammatical",
              "kl": "KL to the reference (nats)", "length": "length (tokens)", "distinct_2": "distinct-2"}  # fmt: skip
    rows = [[label, before.measures[name], after.measures[name]] for name, label in labels.items()]
    summary = {
        "seconds": round(seconds, 1),
        "before": {name: before.measures[name] for name in names},
        "after": {name: after.measures[name] for name in names},
        "kl": after.measures["kl"],
        "reward_model_accuracy": accuracy,
    }
    write_summary(folder, json.dumps(summary, indent=2) + "\n")
    say(f"\n{table(['on held-out prompts', 'before PPO', 'after PPO'], rows)}\n\n{side_by_side(before, after)}\n")
    if accuracy is not None:
        say(f"reward model: {accuracy:.3f} of the held-out pairs right")
    say(f"{seconds:.0f} s; everything is in {folder}")


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    job = settings[""]
    with session(device=job.device, precision=job.precision, seed=job.seed) as device:
        folder = open_output(job, "ppo")
        task = load_task(job)
        tokenizer = load_tokenizer(job, task, folder)
        if job.policy:
            policy = load_policy(resolve_model(job.policy)).to(device)
        else:
            policy = train_sft(settings, task, tokenizer, folder, device)
        if job.stop_after == "sft":
            return
        if job.reward:
            path, accuracy = resolve_model(job.reward), None
            reward = RewardModelScorer(load_reward_model(path).to(device), Tokenizer.load(path))
        else:
            base = copy_of(policy).requires_grad_(True).transformer
            model, accuracy = train_reward_model(settings, task, tokenizer, base, folder, device)
            reward = RewardModelScorer(model, tokenizer)
        if job.stop_after == "reward":
            return
        before, after = train_ppo(settings, task, tokenizer, policy, reward, folder, device)
        report(folder, before, after, accuracy, time.perf_counter() - started)


if __name__ == "__main__":
    main()
