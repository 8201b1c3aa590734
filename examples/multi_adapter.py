"""PPO on one frozen base: policy, value model and reward model are adapters on it; the reference is the base alone.

torchrun examples/multi_adapter.py                                    # the embedded task; SFT makes the base
torchrun examples/multi_adapter.py --policy DIR --data pairs.jsonl    # your model and {prompt, chosen, rejected}
torchrun examples/multi_adapter.py --policy DIR --train qlora         # the base in 4 bits
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from minirlhf.adapters import adapter_view, apply_lora, count_parameters
from minirlhf.adapters.select import ALL, HEAD
from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, JobConfig, PolicyStage, open_stage
from minirlhf.jobs.models import choose_threads, convert_base, to_device
from minirlhf.jobs.reward_model import train_reward_model
from minirlhf.model import Policy, RewardModel, Transformer, ValueModel
from minirlhf.pretrained import load_adapter
from minirlhf.rewards import RewardModelScorer
from minirlhf.runtime import seed_everything
from minirlhf.training import ADAPTER


@dataclass(frozen=True)
class MultiAdapterJobConfig(JobConfig):
    train: Literal["lora", "qlora"] = "lora"  # [-] adapters beside a frozen base, or beside a base held in 4 bits


@dataclass(frozen=True)
class Models:
    """Four models on one base. Each sees its own adapter alone, so no code has to switch adapters."""

    policy: Policy
    value: ValueModel
    reward: RewardModel
    reference: Policy


def with_own_head(settings: dict) -> dict:
    """Untie the head and put LoRA on it: in a tiny base, words used in the same positions differ only in the head.

    docs/models.md#adapters has the figures. Modules that the user has chosen stay.
    """
    lora = settings["lora"]
    if lora.target_modules == (ALL,):
        lora = replace(lora, target_modules=(ALL, HEAD))
    return {**settings, "model": replace(settings["model"], tie_word_embeddings=False), "lora": lora}


def models_on(base: Transformer, settings: dict, device: torch.device) -> Models:
    """Put three adapters on a base, in place -> four views of it."""
    seed_everything(settings["job"].seed)
    convert_base(base, settings["job"])
    for name in ("policy", "value", "reward"):
        apply_lora(base, settings["lora"], name)
    to_device(base, settings["job"], device)
    return Models(
        policy=Policy(adapter_view(base, "policy")),
        value=ValueModel(adapter_view(base, "value")),
        reward=RewardModel(adapter_view(base, "reward")),
        reference=Policy(adapter_view(base, None)).eval(),
    )


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "needs": ("pairs",), "job": MultiAdapterJobConfig}
    with Job.open("multi_adapter", PPOConfig, section="ppo", help=__doc__, **options) as job:
        if not job.common.policy:
            job = replace(job, settings=with_own_head(job.settings))
        base = job.policy().transformer
        choose_threads(base, job.common, job.device)
        models = models_on(base, job.settings, job.device)
        job.say(f"one base of {count_parameters(models.reference)[1]:,} numbers, and on it")
        for name in ("policy", "value", "reward"):
            job.say(f"  {name:<7} {count_parameters(getattr(models, name))[0]:>12,}")

        stage = open_stage(job, "reward", "reward_model")
        if stage.finished:
            load_adapter(models.reward, stage.folder / ADAPTER, "reward")
        accuracy = train_reward_model(job, stage, models.reward)
        reward = RewardModelScorer(models.reward, job.tokenizer, job.config.microbatch_tokens)

        rows, prompts = job.rows("prompts", base.config, reserve=job.config.max_tokens)
        stage = PolicyStage(
            **vars(open_stage(job, "ppo", "ppo")),
            policy=models.policy,
            reference=models.reference,
            value_model=models.value,
            reward=reward,
            rows=rows,
            held_out=prompts,
            prompts=prompts,
        )
        before = stage.evaluate(models.reference)
        if stage.finished:
            load_adapter(models.policy, stage.folder / ADAPTER, "policy")
        else:
            models_and_reward = models.policy, models.reference, reward
            trainer = PPOTrainer(*models_and_reward, job.tokenizer, job.config, value_model=models.value, seed=job.seed)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(models.policy), reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
