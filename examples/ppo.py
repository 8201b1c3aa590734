"""RLHF from end to end: tokenizer, SFT, reward model, PPO, and what it changed.

torchrun examples/ppo.py                                  # the embedded task: no data, no GPU, under two minutes
torchrun examples/ppo.py --data rows.jsonl                # your own preference pairs
torchrun examples/ppo.py --policy DIR --reward DIR        # PPO alone, from models you have
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from reward_model import reward_for
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.evaluation import Report
from minirlhf.model import LoRAConfig, ModelConfig, Policy, ValueModel, copy_of, load_policy
from minirlhf.rewards import Reward
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help

SETTINGS = {
    "job": job.PipelineConfig,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "sft": SFTConfig,
    "reward_model": RewardConfig,
    "ppo": PPOConfig,
    "run": RunSettings,
}


def train_ppo(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, reward: Reward, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """PPO from `policy` against `reward` -> how the policy wrote before and after."""
    settings = job.settings_of(settings, "ppo")
    common, config = settings["job"], settings["ppo"]
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(
        common, tokenizer, task, "prompts", (), policy.transformer.config, reserve=config.max_tokens
    )
    critic = ValueModel(copy_of(policy).transformer) if config.separate_value_model else None
    policy = job.adapt(Policy(policy.transformer, value_head=critic is None), settings, device)
    ref_policy = job.reference_for(policy)

    sampling = config.sampling(tokenizer.eos_ids)
    evaluate = job.evaluator(common, task, tokenizer, held_out, sampling, ref_policy, reward)
    job.say(f"evaluating on {len(held_out[: job.EVALUATION_PROMPTS]):,} held-out prompts")
    before = evaluate(ref_policy)
    if finished := job.finished_stage(settings, folder, "ppo"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    critic = critic and job.adapt(critic.requires_grad_(True), settings, device)
    trainer = PPOTrainer(policy, ref_policy, reward, tokenizer, config, value_model=critic, seed=common.seed)
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


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings["job"]
    with job.session_of(settings) as device:
        if common.policy and common.stop_after == "sft":
            raise InputError("--policy takes the place of SFT: nothing would be left before --stop-after sft; drop one")
        if common.reward and common.stop_after == "reward":
            raise InputError("--reward takes the place of its training: --stop-after reward would do nothing; drop one")
        folder = job.open_output(common, "ppo")
        task = job.load_task(common)
        if not (common.reward or task.reward):
            task.need("pairs")  # better now than after SFT
        tokenizer = job.load_tokenizer(common, task, folder)
        policy = policy_for(settings, task, tokenizer, folder, device)
        if common.stop_after == "sft":
            return job.say(f"stopped after sft; go on with --output {folder} --resume")
        tokens = settings["ppo"].microbatch_tokens
        reward, accuracy = reward_for(settings, task, tokenizer, policy, folder, device, tokens)
        if common.stop_after == "reward":
            return job.say(f"stopped after reward; go on with --output {folder} --resume")
        before, after = train_ppo(settings, task, tokenizer, policy, reward, folder, device)
        seconds = time.perf_counter() - started
        job.report(folder, "PPO", before, after, seconds, reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
