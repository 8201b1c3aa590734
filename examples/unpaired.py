"""Learning from single answers that people liked or not: KTO, BCO.

torchrun examples/unpaired.py                              # the embedded task: its pairs, taken apart
torchrun examples/unpaired.py --unpaired.loss bco
torchrun examples/unpaired.py --data pairs.jsonl           # {prompt, chosen, rejected}
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from dpo import MAX_TOKENS
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.algorithms.unpaired import UnpairedConfig, UnpairedTrainer, single_rows
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
    "unpaired": UnpairedConfig,
    "run": RunSettings,
}


def train_unpaired(
    settings: dict, task: Task, tokenizer: Tokenizer, policy: Policy, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """Training from `policy` on single answers -> how it wrote before and after."""
    settings = job.settings_of(settings, "unpaired")
    common, config, shape = settings["job"], settings["unpaired"], policy.transformer.config
    job.choose_threads(policy, common, device)
    pairs = job.encode(common, tokenizer, task, "pairs", ("chosen", "rejected"), shape)
    rows, held_out = (single_rows(part, shape.max_position_embeddings) for part in pairs)
    _, prompts = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=MAX_TOKENS)
    policy = job.adapt(policy, settings, device)
    ref_policy = job.reference_for(policy)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=tokenizer.eos_ids, batch_size=512)
    evaluate = job.evaluator(common, task, tokenizer, prompts, sampling, ref_policy)
    before = evaluate(ref_policy)
    if finished := job.finished_stage(settings, folder, "unpaired"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = UnpairedTrainer(policy, ref_policy, tokenizer, config, updates=steps, rows=rows)
    batches = Batches(rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="unpaired")
    run = Run(
        job.stage_run(settings, folder, "unpaired"),
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
        folder = job.open_output(common, "unpaired")
        task = job.load_task(common)
        task.need("pairs")
        tokenizer = job.load_tokenizer(common, task, folder)
        policy = policy_for(settings, task, tokenizer, folder, device)
        before, after = train_unpaired(settings, task, tokenizer, policy, folder, device)
        seconds = time.perf_counter() - started
        job.report(folder, settings["unpaired"].loss, before, after, seconds, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
