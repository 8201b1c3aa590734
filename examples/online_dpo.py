"""Preference learning on the policy's own answers, ranked by a judge: Online DPO, XPO, Nash-MD.

torchrun examples/online_dpo.py                                      # the embedded task, its reward model as judge
torchrun examples/online_dpo.py --online_dpo.algorithm nash_md
torchrun examples/online_dpo.py --policy DIR --reward DIR            # from models you have
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from reward_model import reward_for
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import Report, win_rate
from minirlhf.model import LoRAConfig, ModelConfig, Policy, load_policy
from minirlhf.rewards import Reward, judge_by
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help

SETTINGS = {
    "job": job.RLJobConfig,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "sft": SFTConfig,
    "reward_model": RewardConfig,
    "online_dpo": OnlineDPOConfig,
    "run": RunSettings,
}


def train_online(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, reward: Reward, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """From `policy`, judged by `reward` -> how it wrote before and after."""
    settings = job.settings_of(settings, "online_dpo")
    common, config, shape = settings["job"], settings["online_dpo"], policy.transformer.config
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=config.max_tokens)
    policy = job.adapt(policy, settings, device)
    ref_policy = job.reference_for(policy)
    sampling = config.sampling(tokenizer.eos_ids)
    evaluate = job.evaluator(common, task, tokenizer, held_out, sampling, ref_policy, reward)
    before = evaluate(ref_policy)
    if finished := job.finished_stage(settings, folder, "online_dpo"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    trainer = OnlineDPOTrainer(policy, ref_policy, judge_by(reward), tokenizer, config, seed=common.seed)
    batches = Batches(rows, batch_size=config.batch_size, steps=config.steps, seed=common.seed, stream="online_dpo")
    run = Run(
        job.stage_run(settings, folder, "online_dpo"),
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
    common, config = settings["job"], settings["online_dpo"]
    with job.session_of(settings) as device:
        folder = job.open_output(common, "online_dpo")
        task = job.load_task(common)
        if not (common.reward or task.reward):
            task.need("pairs")  # better now than after SFT
        tokenizer = job.load_tokenizer(common, task, folder)
        policy = policy_for(settings, task, tokenizer, folder, device)
        reward, accuracy = reward_for(settings, task, tokenizer, policy, folder, device, config.microbatch_tokens)
        before, after = train_online(settings, task, tokenizer, policy, reward, folder, device)
        measures = {"win_rate": win_rate(before, after), "reward_model_accuracy": accuracy}
        job.report(folder, config.algorithm, before, after, time.perf_counter() - started, **measures)


if __name__ == "__main__":
    main()
