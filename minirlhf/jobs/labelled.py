"""Programs whose reward is a classifier: their settings, and the stage that trains the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minirlhf.algorithms.classifier import ClassifierTrainer
from minirlhf.data.batches import Batches
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, check_range
from minirlhf.jobs.given_models import scorer_of
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.reward_model import EVALUATED, untrained_reward_model
from minirlhf.jobs.settings import JobConfig, RLJobConfig
from minirlhf.jobs.stage import Stage, open_stage
from minirlhf.model.policy import Policy, RewardModel, copy_of
from minirlhf.rewards.scoring import Reward


@dataclass(frozen=True)
class LabelledJobConfig(RLJobConfig):
    rows: int = 20_000  # [rows] of the embedded task
    prompt_words: int = 8  # [words] most words of the beginning of a text that is its prompt
    plays: ClassVar[bool] = False
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"reward_model": ("unpaired",)}  # section -> what it reads, not pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rows", least=100)
        check_range(self, "prompt_words", least=2)
        if self.data and self.rows != type(self).rows:
            raise InputError(
                "--rows: the embedded task has this many rows, and --data replaces it; drop one of the two"
            )
        if self.task != JobConfig.task:
            raise InputError("--task: this program has a task of its own; drop the flag")


@dataclass(frozen=True)
class ClassifierStage:
    """The parts of the stage that trains a classifier on labelled texts."""

    stage: Stage
    model: RewardModel
    trainer: ClassifierTrainer
    batches: Batches
    held_out: list[EncodedRow]

    @classmethod
    def of(cls, job: Opened, policy: Policy) -> ClassifierStage:
        """A classifier that begins with the weights of a policy; the finished one if the stage is finished."""
        stage = open_stage(job, "reward", "reward_model")
        model = untrained_reward_model(job, stage, copy_of(policy).requires_grad_(True).transformer)
        rows, held_out = job.rows("unpaired", model.config)
        batches = stage.batches(rows)
        trainer = ClassifierTrainer(model, job.tokenizer, stage.config, updates=len(batches))
        return cls(stage, model, trainer, batches, held_out)

    def reward(self, job: Opened) -> tuple[Reward, float | None]:
        """-> (the log-odds of a good label as a reward function, the accuracy on held-out texts or None)."""
        return scorer_of(job, self.model), self.trainer.evaluate(self.held_out).get("accuracy")


def classifier_for(job: Opened, policy: Policy) -> tuple[Reward, float | None]:
    """-> (the reward function, its accuracy on held-out texts or None): `--reward`, or a classifier trained here."""
    if job.given_reward:
        return job.given_reward, None
    parts = ClassifierStage.of(job, policy)
    if not parts.stage.finished:
        evaluate = lambda: parts.trainer.evaluate(parts.held_out[:EVALUATED])  # noqa: E731
        run = parts.stage.run(parts.trainer, parts.batches, evaluate)
        for batch in run:
            run.record(parts.trainer.step(batch))
    return parts.reward(job)
