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
from minirlhf.tasks.job import (
    JobConfig,
    load_task,
    load_tokenizer,
    new_policy,
    open_output,
    resolve_model,
    say,
    stage_run,
    steps_for,
)
from minirlhf.tasks.task import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunConfig, finished_model, parse_settings
from minirlhf.training.metrics import metrics_help

SETTINGS = {"": JobConfig, "model": ModelConfig, "sft": SFTConfig, "run": RunConfig}


def train_sft(settings: dict, task: Task, tokenizer: Tokenizer, folder: Path, device: torch.device) -> Policy:
    """Train a policy on the task's rows, or hand back the one this folder holds already."""
    if finished := finished_model(folder / "sft"):
        say(f"sft: finished already, {finished}")
        return load_policy(finished).to(device)
    job, config = settings[""], settings["sft"]
    policy = load_policy(resolve_model(job.policy)) if job.policy else new_policy(settings["model"], tokenizer, job.seed)
    context = policy.transformer.config.max_position_embeddings
    fit = {"context": context, "max_refused": job.max_refused}
    rows = encode_rows(tokenizer, task.need("sft", "SFT"), ("response",), **fit)
    held_out = encode_rows(tokenizer, task.held_out_sft, ("response",), **fit)
    say(rows.summary("sft rows"))

    steps = steps_for(config.steps, config.max_epochs, len(rows.rows), config.batch_size)
    trainer = SFTTrainer(policy.to(device), tokenizer, config, updates=steps)
    batches = Batches(rows.rows, batch_size=config.batch_size, steps=steps, seed=job.seed, stream="sft")
    run = Run(
        stage_run(settings["run"], job, folder, "sft"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=(lambda: trainer.evaluate(held_out.rows)) if held_out.rows else None,
    )
    for batch in run:
        run.record(trainer.step(batch))
    return policy


@exits_cleanly
def main() -> None:
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    job = settings[""]
    with session(device=job.device, precision=job.precision, seed=job.seed) as device:
        folder = open_output(job, "sft")
        task = load_task(job)
        tokenizer = load_tokenizer(job, task, folder)
        train_sft(settings, task, tokenizer, folder, device)
        say(f"the model: {folder / 'sft' / 'model'}")


if __name__ == "__main__":
    main()
