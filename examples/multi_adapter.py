"""PPO on one frozen base: policy, value and reward model are three adapters on it, the reference is none of them.

torchrun examples/multi_adapter.py                                    # the embedded task; SFT makes the base
torchrun examples/multi_adapter.py --policy DIR --data pairs.jsonl    # your model and {prompt, chosen, rejected}
torchrun examples/multi_adapter.py --policy DIR --train qlora         # the base in 4 bits
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from sft import policy_for

from minirlhf import job
from minirlhf.adapters.select import ALL, HEAD
from minirlhf.algorithms.ppo import PPOConfig, PPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import Report
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    Policy,
    RewardModel,
    Transformer,
    ValueModel,
    adapter_view,
    apply_lora,
    count_parameters,
    load_adapter,
    quantise_linears,
)
from minirlhf.rewards import RewardModelScorer
from minirlhf.runtime import seed_everything
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import ADAPTER, Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help


@dataclass(frozen=True)
class Job(job.JobConfig):
    train: Literal["lora", "qlora"] = "lora"  # [-] adapters beside frozen weights, or beside frozen ones of 4 bits


SETTINGS = {
    "job": Job,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "sft": SFTConfig,
    "reward_model": RewardConfig,
    "ppo": PPOConfig,
    "run": RunSettings,
}


@dataclass(frozen=True)
class Models:
    """Four models, one base. Each sees its own adapter only, so nobody has to switch."""

    policy: Policy
    value: ValueModel
    reward: RewardModel
    reference: Policy


def with_own_head(settings: dict) -> dict:
    """The same, for a base made here: words that stand in the same places differ only in the head, so that learns too.

    docs/models.md#adapters has the figures. A user's choice of modules stays.
    """
    lora = settings["lora"]
    if lora.target_modules == (ALL,):
        lora = replace(lora, target_modules=(ALL, HEAD))
    return {**settings, "model": replace(settings["model"], tie_word_embeddings=False), "lora": lora}


def models_on(base: Transformer, settings: dict, device: torch.device) -> Models:
    """Put three adapters on a base, and look at it four ways."""
    common = settings["job"]
    seed_everything(common.seed)
    if common.train == "qlora":
        quantise_linears(base)
    if not job.computes_in_bf16(common):
        base.float()  # the rest; 4 bits stay what they are
    for name in ("policy", "value", "reward"):
        apply_lora(base, settings["lora"], name)
    job.place(base, common, device)
    models = Models(
        policy=Policy(adapter_view(base, "policy")),
        value=ValueModel(adapter_view(base, "value")),
        reward=RewardModel(adapter_view(base, "reward")),
        reference=Policy(adapter_view(base, None)).eval(),
    )
    job.say(f"one base of {count_parameters(models.reference)[1]:,} numbers, and on it")
    for name in ("policy", "value", "reward"):
        job.say(f"  {name:<7} {count_parameters(getattr(models, name))[0]:>12,}")
    return models


def train_reward(settings: dict, task: Task, tokenizer: Tokenizer, model: RewardModel, folder: Path) -> float | None:
    """Train the reward adapter on the task's pairs, or read it from this folder -> accuracy on held-out pairs."""
    settings = job.settings_of(settings, "reward_model")
    common, config = settings["job"], settings["reward_model"]
    rows, held_out = job.encode(common, tokenizer, task, "pairs", ("chosen", "rejected"), model.config)
    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = RewardTrainer(model, tokenizer, config, updates=steps)
    if job.finished_stage(settings, folder, "reward"):
        load_adapter(model, folder / "reward" / ADAPTER, "reward")
    else:
        batches = Batches(rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="reward")
        run = Run(
            job.stage_run(settings, folder, "reward"),
            trainer,
            batches,
            settings=settings,
            tokenizer=tokenizer,
            evaluate=(lambda: trainer.evaluate(held_out)) if held_out else None,
        )
        for batch in run:
            run.record(trainer.step(batch))
    return trainer.evaluate(held_out)["accuracy"] if held_out else None


def train_ppo(settings: dict, task: Task, tokenizer: Tokenizer, models: Models, folder: Path) -> tuple[Report, Report]:
    """Train the policy's and the value's adapter against the reward's -> how the policy wrote before and after."""
    settings = job.settings_of(settings, "ppo")
    common, config, policy = settings["job"], settings["ppo"], models.policy
    shape = policy.transformer.config
    rows, held_out = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=config.max_tokens)
    reward = RewardModelScorer(models.reward, tokenizer, config.microbatch_tokens)
    sampling = config.sampling(tokenizer.eos_ids)
    evaluate = job.evaluator(common, task, tokenizer, held_out, sampling, models.reference, reward)
    before = evaluate(models.reference)
    if job.finished_stage(settings, folder, "ppo"):
        load_adapter(policy, folder / "ppo" / ADAPTER, "policy")
        return before, evaluate(policy)

    trainer = PPOTrainer(
        policy, models.reference, reward, tokenizer, config, value_model=models.value, seed=common.seed
    )
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
        folder = job.open_output(common, "multi_adapter")
        task = job.load_task(common)
        task.need("pairs")
        settings = settings if common.policy else with_own_head(settings)
        tokenizer = job.load_tokenizer(common, task, folder)
        base = policy_for(settings, task, tokenizer, folder, device).transformer
        job.choose_threads(base, common, device)
        models = models_on(base, settings, device)
        accuracy = train_reward(settings, task, tokenizer, models.reward, folder)
        before, after = train_ppo(settings, task, tokenizer, models, folder)
        seconds = time.perf_counter() - started
        job.report(folder, "PPO", before, after, seconds, reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
