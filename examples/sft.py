"""Supervised fine-tuning.

torchrun examples/sft.py                          # the embedded task
torchrun examples/sft.py --data rows.jsonl        # {prompt, response}, {messages}, or pairs (chosen is learnt)
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirlhf.algorithms.sft import SFTConfig, SFTTrainer
from minirlhf.data import Batches, encode_rows
from minirlhf.errors import exits_cleanly
from minirlhf.model import ModelConfig, Policy, load_policy
from minirlhf.runtime import session
from minirlhf.tasks import Task, job
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.metrics import metrics_help

SETTINGS = {"": job.JobConfig, "model": ModelConfig, "sft": SFTConfig, "run": RunSettings}


def train_sft(settings: dict, task: Task, tokenizer: Tokenizer, folder: Path, device: torch.device) -> Policy:
    """Train a policy on the task's rows, or hand back the one this folder holds already."""
    settings = job.settings_of(settings, "sft")
    common, config = settings[""], settings["sft"]
    if finished := job.finished_stage(settings, folder, "sft"):
        return job.place(load_policy(finished), common, device)
    policy = job.place(job.first_policy(common, settings["model"], tokenizer), common, device)
    fit = {"context": policy.transformer.config.max_position_embeddings, "max_refused": common.max_refused}
    rows = encode_rows(tokenizer, task.need("sft", "SFT"), ("response",), **fit)
    held_out = encode_rows(tokenizer, task.held_out_sft, ("response",), **fit | {"max_refused": 1.0}).rows
    job.say(f"model: {sum(p.numel() for p in policy.parameters()):,} parameters\n{rows.summary('sft rows')}")

    steps = job.steps_for(config.steps, config.max_epochs, len(rows.rows), config.batch_size)
    trainer = SFTTrainer(policy, tokenizer, config, updates=steps)
    batches = Batches(rows.rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="sft")
    run = Run(
        job.stage_run(settings, folder, "sft"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=(lambda: trainer.evaluate(held_out)) if held_out else None,
    )
    for batch in run:
        run.record(trainer.step(batch))
    return policy


@exits_cleanly
def main() -> None:
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings[""]
    how = {"precision": common.precision, "seed": common.seed, "threads": common.threads}
    with session(device=common.device, **how) as device:
        folder = job.open_output(common, "sft")
        task = job.load_task(common)
        tokenizer = job.load_tokenizer(common, task, folder)
        train_sft(settings, task, tokenizer, folder, device)
        job.say(f"the model: {folder / 'sft' / 'model'}")


if __name__ == "__main__":
    main()
