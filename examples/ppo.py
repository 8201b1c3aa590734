"""RLHF from end to end: tokenizer, SFT, reward model, PPO, and what it changed.

torchrun examples/ppo.py                                  # the embedded task: no data, no GPU, under two minutes
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

from minirlhf import job
from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.evaluation import Report, evaluate_policy, side_by_side
from minirlhf.model import ModelConfig, Policy, ValueModel, copy_of, load_policy, load_reward_model
from minirlhf.rewards import Reward, RewardModelScorer
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.metrics import metrics_help, table

SETTINGS = {
    "": job.PipelineConfig,
    "model": ModelConfig,
    "sft": SFTConfig,
    "reward_model": RewardConfig,
    "ppo": PPOConfig,
    "run": RunSettings,
}
EVALUATION_PROMPTS = 1024  # before and after; the first 128 of them while it runs


def train_ppo(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, reward: Reward, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """PPO from `policy` against `reward` -> how the policy wrote before and after."""
    settings = job.settings_of(settings, "ppo")
    common, config = settings[""], settings["ppo"]
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(
        common, tokenizer, task, "prompts", (), policy.transformer.config, reserve=config.max_tokens
    )
    ref_policy = copy_of(policy)

    def evaluate(policy: Policy, prompts: int = EVALUATION_PROMPTS) -> Report:
        return evaluate_policy(
            policy,
            tokenizer,
            held_out[:prompts],
            config.sampling(tokenizer.eos_id),
            reward=reward,
            ref_policy=ref_policy,
            gold=task.gold,
            seed=common.seed,
        )

    job.say(f"evaluating on {len(held_out[:EVALUATION_PROMPTS]):,} held-out prompts")
    before = evaluate(ref_policy)
    if finished := job.finished_stage(settings, folder, "ppo"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    value_model = ValueModel(copy_of(policy).transformer) if config.separate_value_model else None
    if value_model:
        value_model = job.place(value_model.requires_grad_(True), common, device)
    policy = job.place(Policy(policy.transformer, value_head=value_model is None), common, device)
    trainer = PPOTrainer(policy, ref_policy, reward, tokenizer, config, value_model=value_model, seed=common.seed)
    batches = Batches(rows, batch_size=config.batch_size, steps=config.steps, seed=common.seed, stream="ppo")
    run = Run(
        job.stage_run(settings, folder, "ppo"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=lambda: evaluate(policy, prompts=128).known(),
    )
    for batch in run:
        run.record(trainer.step(batch))
    return before, evaluate(policy)


def report(folder: Path, before: Report, after: Report, accuracy: float | None, seconds: float) -> None:
    """Show what PPO changed, and write summary.json."""
    labels = {
        "gold_reward": "gold reward",
        "model_reward": "reward model's score",
        "grammatical": "share grammatical",
        "length": "length (tokens)",
        "distinct_2": "distinct-2",
        "kl": "KL to the reference (nats)",
    }
    rows = [[label, before.measures[name], after.measures[name]] for name, label in labels.items()]
    kept = [name for name in labels if name != "kl"]
    summary = {
        "seconds": round(seconds, 1),
        "before": {name: before.measures[name] for name in kept},
        "after": {name: after.measures[name] for name in kept},
        "kl": after.measures["kl"],
        "reward_model_accuracy": accuracy,
    }
    job.write_summary(folder, json.dumps(summary, indent=2) + "\n")
    job.say(f"\n{table(['on held-out prompts', 'before PPO', 'after PPO'], rows)}\n\n{side_by_side(before, after)}\n")
    if accuracy is not None:
        job.say(f"the reward model is right about {accuracy:.1%} of the held-out pairs")
    job.say(f"{seconds:.0f} s; everything is in {folder}")


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings[""]
    with job.session_of(common) as device:
        if common.policy and common.stop_after == "sft":
            raise InputError("--policy takes the place of SFT: nothing would be left before --stop-after sft; drop one")
        folder = job.open_output(common, "ppo")
        task = job.load_task(common)
        if not common.reward:
            task.need("pairs")  # better now than after SFT
        tokenizer = job.load_tokenizer(common, task, folder)
        if common.policy:
            policy = job.place(job.first_policy(common, settings["model"], tokenizer), common, device)
        else:
            policy = train_sft(settings, task, tokenizer, folder, device)
        if common.stop_after == "sft":
            return job.say(f"stopped after sft; go on with --output {folder} --resume")
        if common.reward:
            path, accuracy = job.resolve_model(common.reward), None
            model, reader = load_reward_model(path), Tokenizer.load(path)
            job.check_vocabulary(model.config, reader, path)
            reward = RewardModelScorer(job.place(model, common, device), reader, settings["ppo"].microbatch_tokens)
        else:
            base = copy_of(policy).requires_grad_(True).transformer
            model, accuracy = train_reward_model(settings, task, tokenizer, base, folder, device)
            reward = RewardModelScorer(model, tokenizer, settings["ppo"].microbatch_tokens)
        if common.stop_after == "reward":
            return job.say(f"stopped after reward; go on with --output {folder} --resume")
        before, after = train_ppo(settings, task, tokenizer, policy, reward, folder, device)
        report(folder, before, after, accuracy, time.perf_counter() - started)


if __name__ == "__main__":
    main()
