"""A stage of a job: settings, folder, run. A `PolicyStage` also holds the models and rows that train a policy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minirlhf.algorithms.on_policy import OnPolicyConfig
from minirlhf.data.batches import Batches
from minirlhf.data.encoding import EncodedRow
from minirlhf.evaluation.policies import Report, evaluate_policy
from minirlhf.generation.engine import SamplingConfig
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.settings import stage_settings
from minirlhf.model.policy import Policy, ValueModel
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.distributed import say
from minirlhf.training.run import Run, RunConfig, Trainer, finished_model
from minirlhf.training.settings import settings_to_toml

EVALUATION_PROMPTS = 1024  # before and after a stage; evaluations during the stage take fewer prompts
EVALUATION_TOKENS = 48  # longest answer in evaluations, unless the algorithm is on-policy


@dataclass(frozen=True)
class Stage:
    job: Opened
    name: str  # name of the stage's folder, and of the shuffle of its rows
    section: str  # name of the stage's own settings
    settings: dict[str, Any]  # all settings that the stage depends on
    finished: Path | None  # the final model, if an earlier start of the job has finished the stage

    @property
    def config(self) -> Any:
        """The stage's own settings."""
        return self.job.settings[self.section]

    @property
    def folder(self) -> Path:
        return self.job.folder / self.name

    def batches(self, rows: list, stream: str | None = None, times: int = 1) -> Batches:
        """The batches of the stage. stream: name of the shuffle.   times: make batches for this many runs."""
        return Batches.of(rows, self.config, seed=self.job.seed, stream=stream or self.name, times=times)

    def run(
        self,
        trainer: Trainer,
        batches: Batches,
        evaluate: Callable[[], dict[str, float]] | None,
        until: Callable[[dict[str, float]], bool] | None = None,
        eval_every: int | None = None,
    ) -> Run:
        """The run in the stage's folder; it resumes if the job resumes.

        eval_every: steps between evaluations, unless `--run.eval_every` is set.
        """
        job, common, every = self.job, self.job.common, self.settings["run"]
        changes = {"eval_every": eval_every if every.eval_every is None else every.eval_every}
        if self.section != job.section:  # best_metric is a metric of the program's own stage
            changes |= {"best_metric": None, "best_mode": None}
        if job.task.validation:
            from minirlhf.jobs.validation import with_validation  # here, so that the core loads no leaf

            evaluate = with_validation(self, trainer, evaluate)
        config = RunConfig(
            **vars(every) | changes,
            output=str(self.folder),
            resume=common.resumes,
            base=os.path.abspath(resolve_model(common.policy or job.folder / "sft")),
            seed=job.seed,
        )
        from minirlhf.jobs.tracking import on_metrics  # here, so that the core loads no leaf

        parts = {"settings": self.settings, "tokenizer": job.tokenizer}
        parts |= {"on_metrics": on_metrics(common.tracker, self.folder, len(batches))}
        return Run(config, trainer, batches, evaluate=evaluate, until=until, **parts)


def open_stage(job: Opened, name: str, section: str, reads: tuple[str, ...] = ()) -> Stage:
    """Open a stage, and find out if an earlier start of the job has finished it.

    reads: further sections of settings that the stage depends on.
    Raises: InputError if the stage was finished with other settings.
    """
    folder, settings = job.folder / name, stage_settings(job.settings, section, *reads)
    if final := finished_model(folder):
        from minirlhf.training.same_settings import check_same_settings  # here, so that the core loads no leaf

        check_same_settings(folder / "config.toml", settings_to_toml(settings))
        say(f"{name}: finished already, {final}")
    return Stage(job, name, section, settings, final)


@dataclass(frozen=True)
class PolicyStage(Stage):
    """A stage that trains a policy and evaluates its completions of held-out prompts."""

    policy: Policy  # to be trained; the trained policy once the stage is finished
    reference: Policy  # the policy at the start, frozen
    rows: list[EncodedRow]  # to train on
    held_out: list[EncodedRow]
    prompts: list[EncodedRow]  # held out, to evaluate on
    reward: Reward | None = None
    value_model: ValueModel | None = None  # with a trunk of its own; None: a head on the policy's trunk, or no values

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling in evaluations: as in training if the algorithm is on-policy, else at temperature 1."""
        eos_ids = self.job.tokenizer.eos_ids
        if isinstance(self.config, OnPolicyConfig):
            return self.config.sampling(eos_ids)
        return SamplingConfig(max_tokens=EVALUATION_TOKENS, stop_ids=eos_ids, batch_size=512)

    def evaluate(self, policy: Policy, prompts: int | None = None, greedy: bool = False) -> Report:
        """The completions of a policy and their measures. The sampling noise is the same in every call.

        prompts: number of held-out prompts; default EVALUATION_PROMPTS.   greedy: take the likeliest tokens, and leave
        the reward's score out.
        """
        job = self.job
        return evaluate_policy(
            policy,
            job.tokenizer,
            self.prompts[: prompts or EVALUATION_PROMPTS],
            replace(self.sampling, temperature=0.0) if greedy else self.sampling,
            reward=None if greedy else self.reward,
            ref_policy=self.reference,
            gold=job.task.gold,
            seed=job.seed,
            environment=job.environment,
        )

    def train_on(self, trainer: Trainer, prompts: int = 128) -> Run:
        """The run of a trainer on the stage's rows. prompts: number in each evaluation during the run."""

        def evaluate() -> dict[str, float]:
            held_out = {} if isinstance(self.config, OnPolicyConfig) else trainer.evaluate(self.held_out)
            return {**held_out, **self.evaluate(self.policy, prompts).known()}

        from minirlhf.jobs.before_training import begin  # here, so that the core loads no leaf

        begin(self, trainer)
        return self.run(trainer, self.batches(self.rows), evaluate)
