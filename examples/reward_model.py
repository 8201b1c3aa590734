"""A reward model from preference pairs.

    torchrun examples/reward_model.py                                  # the embedded task
    torchrun examples/reward_model.py --data pairs.jsonl --policy DIR  # {prompt, chosen, rejected}; DIR: an SFT model
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.data import Batches, encode_rows
from minirlhf.errors import exits_cleanly
from minirlhf.model import ModelConfig, RewardModel, Transformer, load_policy, load_reward_model
from minirlhf.runtime import seed_everything, session
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

SETTINGS = {"": JobConfig, "model": ModelConfig, "reward": RewardConfig, "run": RunConfig}


def train_reward_model(
    settings: dict, task: Task, tokenizer: Tokenizer, base: Transformer, folder: Path, device: torch.device
) -> tuple[RewardModel, float]:
    """Train on the task's pairs, from the weights of `base` -> (model, accuracy on held-out pairs).

    A model this folder holds already is handed back instead.
    """
    job, config = settings[""], settings["reward"]
    fit = {"context": base.config.max_position_embeddings, "max_refused": job.max_refused}
    held_out = encode_rows(tokenizer, task.held_out_pairs, ("chosen", "rejected"), **fit)
    finished = finished_model(folder / "reward")
    seed_everything(job.seed)  # the score head is new
    model = load_reward_model(finished) if finished else RewardModel(base)
    rows = encode_rows(tokenizer, task.need("pairs", "a reward model"), ("chosen", "rejected"), **fit)
    steps = steps_for(config.steps, config.max_epochs, len(rows.rows), config.batch_size)
    trainer = RewardTrainer(model.to(device), tokenizer, config, updates=steps)
    if finished:
        say(f"reward: finished already, {finished}")
    else:
        say(rows.summary("preference pairs"))
        batches = Batches(rows.rows, batch_size=config.batch_size, steps=steps, seed=job.seed, stream="reward")
        run = Run(
            stage_run(settings["run"], job, folder, "reward"),
            trainer,
            batches,
            settings=settings,
            tokenizer=tokenizer,
            evaluate=lambda: trainer.evaluate(held_out.rows),
        )
        for batch in run:
            run.record(trainer.step(batch))
    return model, trainer.evaluate(held_out.rows)["accuracy"]


@exits_cleanly
def main() -> None:
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    job = settings[""]
    with session(device=job.device, precision=job.precision, seed=job.seed) as device:
        folder = open_output(job, "reward")
        task = load_task(job)
        tokenizer = load_tokenizer(job, task, folder)
        base = load_policy(resolve_model(job.policy)) if job.policy else new_policy(settings["model"], tokenizer, job.seed)
        _, accuracy = train_reward_model(settings, task, tokenizer, base.transformer, folder, device)
        say(f"accuracy on held-out pairs: {accuracy:.3f}; the model: {folder / 'reward' / 'model'}")


if __name__ == "__main__":
    main()
