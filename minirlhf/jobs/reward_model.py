"""The reward of a job: a reward model from a folder, the task's own check, or a reward model trained on pairs."""

from __future__ import annotations

from minirlhf.algorithms.reward_model import RewardTrainer
from minirlhf.jobs.models import choose_threads, to_device
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.prepare import prepare
from minirlhf.jobs.stage import Stage, open_stage
from minirlhf.model.policy import Policy, RewardModel, copy_of
from minirlhf.model.transformer import Transformer
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.randomness import seed_everything
from minirlhf.training.run import ADAPTER

EVALUATED = 512  # held-out pairs in each evaluation during training; the accuracy at the end takes all pairs


def reward_for(job: Opened, policy: Policy) -> tuple[Reward, float | None]:
    """-> (the reward function, its accuracy on held-out pairs or None).

    Take `--reward`, else the task's check of answers, else train a reward model from the policy's weights. An
    environment rewards by itself: beside it, take `--reward` or none.
    """
    if job.given_reward or job.environment:
        return job.given_reward, None
    from minirlhf.jobs.given_models import scorer_of  # here, so that the core loads no leaf

    stage = open_stage(job, "reward", "reward_model")
    model = untrained_reward_model(job, stage, copy_of(policy).requires_grad_(True).transformer)
    accuracy = train_reward_model(job, stage, model)
    return scorer_of(job, model), accuracy


def train_reward_model(job: Opened, stage: Stage, model: RewardModel) -> float | None:
    """Train the model on the task's pairs, unless the stage is finished -> its accuracy on held-out pairs."""
    from minirlhf.algorithms.margins import margins_of  # here, so that the core loads no leaf

    rows, held_out = job.rows("pairs", model.config)
    margins_of(rows)  # refuse a bad margin now, not in the middle of the stage
    batches = stage.batches(rows)
    trainer = RewardTrainer(model, job.tokenizer, stage.config, updates=len(batches))
    if not stage.finished:
        run = stage.run(trainer, batches, lambda: trainer.evaluate(held_out[:EVALUATED]))
        for batch in run:
            run.record(trainer.step(batch))
    return trainer.evaluate(held_out).get("accuracy")


def untrained_reward_model(job: Opened, stage: Stage, base: Transformer) -> RewardModel:
    """A reward model with a new score head on the weights of `base`; the finished model if the stage is finished."""
    from minirlhf.pretrained import load_adapter, load_reward_model

    finished = stage.finished
    seed_everything(job.seed)  # the score head is random
    if finished and job.common.train == "all":
        model = to_device(load_reward_model(finished), job.common, job.device)
    else:
        model = prepare(RewardModel(base), stage.settings, job.device)
        if finished:  # put the adapter on the base in memory; the merged model in `finished` is a second base
            load_adapter(model, stage.folder / ADAPTER)
    choose_threads(model, job.common, job.device)
    return model
