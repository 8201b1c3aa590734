"""A reward model from preference pairs.

torchrun examples/reward_model.py                                  # the embedded task
torchrun examples/reward_model.py --data pairs.jsonl --policy DIR  # {prompt, chosen, rejected}; DIR: an SFT model
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirlhf import job
from minirlhf.algorithms.reward_model import RewardConfig, RewardTrainer
from minirlhf.data import Batches
from minirlhf.errors import exits_cleanly
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    Policy,
    RewardModel,
    Transformer,
    copy_of,
    load_adapter,
    load_reward_model,
)
from minirlhf.rewards import Reward, RewardModelScorer
from minirlhf.runtime import seed_everything
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import ADAPTER, Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help

SETTINGS = {
    "job": job.JobConfig,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "reward_model": RewardConfig,
    "run": RunSettings,
}


def train_reward_model(
    settings: dict, task: Task, tokenizer: Tokenizer, base: Transformer, folder: Path, device: torch.device
) -> tuple[RewardModel, float | None]:
    """Train on the task's pairs, from the weights of `base` -> (model, accuracy on held-out pairs).

    A model this folder holds already is handed back instead.
    """
    settings = job.settings_of(settings, "reward_model")
    common, config = settings["job"], settings["reward_model"]
    finished = job.finished_stage(settings, folder, "reward")
    seed_everything(common.seed)  # the score head is new
    if finished and common.train == "all":
        model = job.place(load_reward_model(finished), common, device)
    else:
        model = job.adapt(RewardModel(base), settings, device)
        if finished:  # on the base that is there; merged it would be a model of its own
            load_adapter(model, folder / "reward" / ADAPTER)
    job.choose_threads(model, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "pairs", ("chosen", "rejected"), base.config)

    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = RewardTrainer(model, tokenizer, config, updates=steps)
    if not finished:
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
    return model, trainer.evaluate(held_out)["accuracy"] if held_out else None


def reward_for(
    settings: dict,
    task: Task,
    tokenizer: Tokenizer,
    policy: Policy,
    folder: Path,
    device: torch.device,
    microbatch_tokens: int,
) -> tuple[Reward, float | None]:
    """What the task's answers are scored with: `--reward`, a check, or a model trained from the policy's weights
    -> (reward function, accuracy on held-out pairs if one was trained).
    """
    common = settings["job"]
    if common.reward:
        path = job.resolve_model(common.reward)
        model, reader = load_reward_model(path, torch.float32), Tokenizer.load(path)
        job.check_vocabulary(model.config, reader, path)
        job.check_readable(reader, [*task.prompts, *task.held_out_prompts], path)
        return RewardModelScorer(job.place(model, common, device), reader, microbatch_tokens), None
    if task.reward:
        return task.reward, None
    base = copy_of(policy).requires_grad_(True).transformer
    model, accuracy = train_reward_model(settings, task, tokenizer, base, folder, device)
    return RewardModelScorer(model, tokenizer, microbatch_tokens), accuracy


@exits_cleanly
def main() -> None:
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings["job"]
    job.check_base(common)
    with job.session_of(settings) as device:
        folder = job.open_output(common, "reward")
        task = job.load_task(common)
        tokenizer = job.load_tokenizer(common, task, folder)
        base = job.first_policy(common, settings["model"], tokenizer).transformer
        _, accuracy = train_reward_model(settings, task, tokenizer, base, folder, device)
        job.say(f"accuracy on held-out pairs: {accuracy}; the model: {folder / 'reward' / 'model'}")


if __name__ == "__main__":
    main()
