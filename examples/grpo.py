"""GRPO and its family: groups of completions, compared with one another.

torchrun examples/grpo.py                                  # sums, checked; from a model that can hardly add
torchrun examples/grpo.py --grpo.algorithm dapo            # any row of ALGORITHMS in minirlhf/algorithms/grpo.py
torchrun examples/grpo.py --policy DIR --reward DIR        # from models you have
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from reward_model import reward_for
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.grpo import GRPOConfig, GRPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import Report
from minirlhf.model import LoRAConfig, ModelConfig, Policy, load_policy
from minirlhf.rewards import Reward
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help


@dataclass(frozen=True)
class Job(job.RLJobConfig):
    task: str = "arithmetic"  # [-] embedded task: arithmetic or reviews
    stop_sft_at: float | None = 0.4  # [share] end SFT once it solves so many training prompts; none: all its steps


@dataclass(frozen=True)
class SumsModel(ModelConfig):
    """For looking up single digits: many narrow heads, short rotary wavelengths, a head of its own."""

    num_attention_heads: int = 8  # [heads] query heads
    num_key_value_heads: int = 8  # [heads] key and value heads, each shared by a group of query heads
    rope_theta: float = 100.0  # [-] base of the rotary wavelengths
    tie_word_embeddings: bool = False  # [-] the head is the embedding, transposed


@dataclass(frozen=True)
class FirstSteps(SFTConfig):
    """SFT that is to be stopped on its way: at one learning rate, so that where it stops does not depend on a plan."""

    steps: int = 3000  # [steps] at most, one batch each
    max_epochs: float = 20.0  # [epochs] fewer steps if they would go over the rows more often than this
    batch_size: int = 64  # [rows] per step, over all processes
    lr: float = 3e-3  # [per update] learning rate
    lr_final: float = 1.0  # [share of lr] no decay


@dataclass(frozen=True)
class Sums(GRPOConfig):
    """GRPO for answers of a few digits: many prompts with few completions each, none of them wasted.

    Of another algorithm's row these settings keep all but `resample`; sentences want `--grpo.temperature 1`, more
    completions of fewer prompts, and a cost of leaving the reference, `--grpo.kl_coef`.
    """

    steps: int = 500  # [steps] one batch of prompts each
    batch_size: int = 256  # [prompts] sampled per step, over all processes
    minibatch_size: int = 128  # [prompts] per update, with all of their completions
    group_size: int = 4  # [completions] per prompt
    resample: int | None = 1  # [times] sample other prompts in place of groups of equal reward (dynamic sampling)
    lr: float = 1e-3  # [per update] peak learning rate
    temperature: float = 1.2  # [-] of sampling, and so of policy, reference and KL


SETTINGS = {
    "job": Job,
    "model": SumsModel,
    "lora": LoRAConfig,
    "sft": FirstSteps,
    "reward_model": RewardConfig,
    "grpo": Sums,
    "run": RunSettings,
}


def train_grpo(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, reward: Reward, folder: Path, device: torch.device
) -> tuple[Report, Report, dict[str, float | None]]:
    """GRPO from `policy` against `reward` -> how it wrote before and after, sampled, and its greedy gold rewards."""
    settings = job.settings_of(settings, "grpo")
    common, config, shape = settings["job"], settings["grpo"], policy.transformer.config
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=config.max_tokens)
    policy = job.adapt(policy, settings, device)
    ref_policy = job.reference_for(policy)
    sampling = config.sampling(tokenizer.eos_ids)
    evaluate = job.evaluator(common, task, tokenizer, held_out, sampling, ref_policy, reward)
    greedy = job.evaluator(common, task, tokenizer, held_out, replace(sampling, temperature=0.0), ref_policy)
    before, greedy_before = evaluate(ref_policy), greedy(ref_policy)

    if finished := job.finished_stage(settings, folder, "grpo"):
        policy = job.place(load_policy(finished), common, device)
    else:
        reference = ref_policy if config.kl_coef else None
        steps, size = config.steps, config.batch_size
        spare_steps = steps * max(1, config.recipe.resample)
        spare = Batches(rows, batch_size=size, steps=spare_steps, seed=common.seed, stream="grpo spare")
        fast = {"seed": common.seed, "compiled": job.compiles(common, device)}
        trainer = GRPOTrainer(policy, reference, reward, tokenizer, config, spare=spare, **fast)
        batches = Batches(rows, batch_size=size, steps=steps, seed=common.seed, stream="grpo")
        run = Run(
            job.stage_run(settings, folder, "grpo"),
            trainer,
            batches,
            settings=settings,
            tokenizer=tokenizer,
            evaluate=lambda: evaluate(policy, prompts=256).known(),
        )
        for batch in run:
            run.record(trainer.step(batch))
    greedy_after = greedy(policy)
    gold = {"greedy_gold_before": greedy_before, "greedy_gold_after": greedy_after}
    return before, evaluate(policy), {name: report.measures["gold_reward"] for name, report in gold.items()}


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common, config = settings["job"], settings["grpo"]
    with job.session_of(settings) as device:
        folder = job.open_output(common, "grpo")
        task = job.load_task(common)
        if not (common.reward or task.reward):
            task.need("pairs")  # better now than after SFT
        tokenizer = job.load_tokenizer(common, task, folder)
        stop_at = common.stop_sft_at if task.reward else None
        policy = policy_for(settings, task, tokenizer, folder, device, stop_at)
        reward, _ = reward_for(settings, task, tokenizer, policy, folder, device, config.microbatch_tokens)
        before, after, gold = train_grpo(settings, task, tokenizer, policy, reward, folder, device)
        job.report(folder, config.algorithm, before, after, time.perf_counter() - started, **gold)


if __name__ == "__main__":
    main()
