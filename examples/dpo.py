"""Learning from pairs without a reward model: DPO and its family.

torchrun examples/dpo.py                               # the embedded task: SFT, then DPO
torchrun examples/dpo.py --dpo.loss simpo --dpo.beta 2 # any row of LOSSES in minirlhf/algorithms/dpo.py
torchrun examples/dpo.py --data pairs.jsonl            # {prompt, chosen, rejected}
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.dpo import DPOConfig, DPOTrainer
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import Report, win_rate
from minirlhf.generation import SamplingConfig
from minirlhf.model import LoRAConfig, ModelConfig, Policy, load_policy
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help

SETTINGS = {
    "job": job.JobConfig,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "run": RunSettings,
}
MAX_TOKENS = 48  # of the answers it is judged by


def train_dpo(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """DPO from `policy` on the task's pairs -> how it wrote before and after."""
    settings = job.settings_of(settings, "dpo")
    common, config, shape = settings["job"], settings["dpo"], policy.transformer.config
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "pairs", ("chosen", "rejected"), shape)
    _, prompts = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=MAX_TOKENS)
    policy = job.adapt(policy, settings, device)
    sft_policy = job.reference_for(policy)
    ref_policy = job.reference_for(policy, moves=True) if config.ref_update_every else sft_policy
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=tokenizer.eos_ids, batch_size=512)
    evaluate = job.evaluator(common, task, tokenizer, prompts, sampling, sft_policy)
    before = evaluate(sft_policy)
    if finished := job.finished_stage(settings, folder, "dpo"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = DPOTrainer(policy, ref_policy, tokenizer, config, updates=steps)
    batches = Batches(rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="dpo")
    run = Run(
        job.stage_run(settings, folder, "dpo"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=lambda: {**trainer.evaluate(held_out), **evaluate(policy, prompts=128).known()},
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
        folder = job.open_output(common, "dpo")
        task = job.load_task(common)
        task.need("pairs")
        tokenizer = job.load_tokenizer(common, task, folder)
        policy = policy_for(settings, task, tokenizer, folder, device)
        before, after = train_dpo(settings, task, tokenizer, policy, folder, device)
        seconds = time.perf_counter() - started
        job.report(folder, settings["dpo"].loss, before, after, seconds, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
