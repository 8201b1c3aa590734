"""The work of each program of `minirlhf train`: its trainers and their batches.

A function with the name of a program yields the work of its stages, unless an earlier start has finished a stage. The
program's example in examples/ spells out the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from minirlhf.algorithms.distillation import DistillationTrainer
from minirlhf.algorithms.dpo import DPOTrainer
from minirlhf.algorithms.grpo import GRPOTrainer
from minirlhf.algorithms.online_dpo import OnlineDPOTrainer
from minirlhf.algorithms.ppo import PPOTrainer
from minirlhf.algorithms.process_reward import ProcessRewardTrainer
from minirlhf.algorithms.reward_model import RewardTrainer
from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.algorithms.unpaired import UnpairedTrainer, single_rows
from minirlhf.data.batches import Batches
from minirlhf.data.encoding import EncodedRow
from minirlhf.evaluation.pairwise import win_rate
from minirlhf.jobs import best_of_n as best_of
from minirlhf.jobs import played, programs
from minirlhf.jobs.given_models import given_student, scorer_of
from minirlhf.jobs.job import Job
from minirlhf.jobs.labelled import ClassifierStage
from minirlhf.jobs.models import choose_threads, compiles, to_device
from minirlhf.jobs.prepare import prepare
from minirlhf.jobs.reward_model import EVALUATED, untrained_reward_model
from minirlhf.jobs.sft import untrained_policy
from minirlhf.jobs.stage import PolicyStage, Stage, open_stage
from minirlhf.jobs.steps import encoded_steps
from minirlhf.model.policy import Policy, RewardModel, copy_of
from minirlhf.model.process_reward import ProcessRewardModel
from minirlhf.pretrained import load_adapter
from minirlhf.rewards.functions import parts_of
from minirlhf.rewards.judges import judge_by
from minirlhf.training.run import ADAPTER, Run, Trainer
from minirlhf.training.table import table


@dataclass(frozen=True)
class Work:
    """The work of a stage: a trainer, its batches, and a function that opens their run."""

    stage: Stage
    trainer: Trainer
    batches: Batches
    open: Callable[[], Run]


def sft(job: Job) -> Iterator[Work]:
    stage = open_stage(job, "sft", "sft")
    if not stage.finished:
        policy = untrained_policy(job, stage)
        rows, held_out = job.rows("sft", policy.transformer.config)
        batches = stage.batches(rows)
        yield evaluated(stage, SFTTrainer(policy, job.tokenizer, stage.config, updates=len(batches)), batches, held_out)
    job.say(f"the model: {stage.folder / 'model'}")


def reward_model(job: Job) -> Iterator[Work]:
    stage = open_stage(job, "reward", "reward_model")
    model = untrained_reward_model(job, stage, job.base().transformer)
    accuracy = yield from fit_reward(job, stage, model)
    job.say(f"accuracy on held-out pairs: {accuracy}; the model: {stage.folder / 'model'}")


def fit_reward(job: Job, stage: Stage, model: RewardModel) -> Iterator[Work]:
    """The work of a reward model. Returns its accuracy on held-out pairs."""
    rows, held_out = job.rows("pairs", model.config)
    batches = stage.batches(rows)
    trainer = RewardTrainer(model, job.tokenizer, stage.config, updates=len(batches))
    if not stage.finished:
        yield evaluated(stage, trainer, batches, held_out)
    return trainer.evaluate(held_out).get("accuracy")


def process_reward(job: Job) -> Iterator[Work]:
    stage = open_stage(job, "process_reward", "process_reward")
    model = prepare(ProcessRewardModel(job.base().transformer), stage.settings, job.device)
    choose_threads(model, job.common, job.device)
    rows, held_out = encoded_steps(job, model.config.max_position_embeddings)
    batches = stage.batches(rows, "process")
    trainer = ProcessRewardTrainer(model, job.tokenizer, job.config, updates=len(batches))
    before = trainer.evaluate(held_out)
    yield evaluated(stage, trainer, batches, held_out)
    after = trainer.evaluate(held_out)
    labels = [label for row in held_out for label in row.source["labels"]]
    always_the_same = max(sum(labels), len(labels) - sum(labels)) / len(labels) if labels else None
    header = [f"on {len(labels)} held-out labels", "before", "after", "always the same"]
    cells = ["accuracy", before.get("accuracy"), after.get("accuracy"), always_the_same]
    seconds = time.perf_counter() - job.started
    job.say(f"\n{table(header, [cells])}\n\n{seconds:.0f} s; everything is in {job.folder}")


def ppo(job: Job) -> Iterator[Work]:
    base = job.policy()
    reward, accuracy = job.reward(base)
    stage = job.stage(base, "prompts", reward=reward, values=True)
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        options = {"value_model": stage.value_model, "seed": job.seed, "environment": job.environment}
        trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
        yield sampled(stage, trainer)
    job.report("PPO", before, stage.evaluate(stage.policy), reward_model_accuracy=accuracy)


def best_of_n(job: Job) -> Iterator[Work]:
    base = job.policy()
    reward, accuracy = job.reward(base)
    stage = job.stage(base, "prompts", reward=reward, values=True)
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        options = {"value_model": stage.value_model, "seed": job.seed}
        trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
        yield sampled(stage, trainer)
    after = stage.evaluate(stage.policy)
    job.report("PPO", before, after, reward_model_accuracy=accuracy)
    job.say(best_of.compare_with_ppo(stage, before, after))


def multi_adapter(job: Job) -> Iterator[Work]:
    job = job if job.common.policy else programs.with_own_head(job)
    yield from on_one_base(job, job.policy(), lambda stage: stage)


def llama(job: Job) -> Iterator[Work]:
    job = job if job.common.policy else programs.with_own_head(job)
    base, folder = programs.first_base(job)
    stage = programs.based_on(open_stage(job, "sft", "sft"), folder)
    if not stage.finished:
        policy = prepare(base, stage.settings, job.device)
        rows, held_out = job.rows("sft", policy.transformer.config)
        batches = stage.batches(rows)
        yield evaluated(stage, SFTTrainer(policy, job.tokenizer, stage.config, updates=len(batches)), batches, held_out)
    folder = job.folder / "sft"
    yield from on_one_base(job, programs.merged_sft(job), lambda stage: programs.based_on(stage, folder))
    job.say(f"the model, without adapters: {job.folder / 'ppo' / 'model'}")


def on_one_base(job: Job, base: Policy, stage_of: Callable[[Stage], Stage]) -> Iterator[Work]:
    """A reward model and PPO as adapters of one base. stage_of: changes the stages."""
    models = programs.four_models(job, base.transformer)
    job.say(models.sizes())
    stage = stage_of(open_stage(job, "reward", "reward_model"))
    if stage.finished:
        load_adapter(models.reward, stage.folder / ADAPTER, "reward")
    accuracy = yield from fit_reward(job, stage, models.reward)
    reward = scorer_of(job, models.reward)
    stage = stage_of(programs.stage_on_one_base(job, models, reward))
    before = stage.evaluate(models.reference)
    if not stage.finished:
        options = {"value_model": models.value, "seed": job.seed}
        trainer = PPOTrainer(models.policy, models.reference, reward, job.tokenizer, job.config, **options)
        yield sampled(stage, trainer)
    job.report("PPO", before, stage.evaluate(models.policy), reward_model_accuracy=accuracy)


def labelled(job: Job) -> Iterator[Work]:
    base = job.policy()
    reward, accuracy = yield from fit_classifier(job, base)
    stage = job.stage(base, "prompts", reward=reward, values=True)
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        options = {"value_model": stage.value_model, "seed": job.seed}
        trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
        yield sampled(stage, trainer)
    after = stage.evaluate(stage.policy)
    job.report("PPO", before, after, classifier_accuracy=accuracy, **programs.share_rude(job, before, after))


def fit_classifier(job: Job, base: Policy) -> Iterator[Work]:
    """The work of a classifier, unless `--reward` is given. Returns (the reward function, its accuracy or None)."""
    if job.given_reward:
        return job.given_reward, None
    parts = ClassifierStage.of(job, base)
    if not parts.stage.finished:
        yield evaluated(parts.stage, parts.trainer, parts.batches, parts.held_out[:EVALUATED])
    return parts.reward(job)


def grpo(job: Job) -> Iterator[Work]:
    config = job.config
    base = job.policy(stop_at=job.common.stop_sft_at if job.task.reward else None)
    reward, _ = job.reward(base)
    stage = job.stage(base, "prompts", reward=reward)
    before, greedy_before = stage.evaluate(stage.reference), stage.evaluate(stage.reference, greedy=True)
    if not stage.finished:
        reference = stage.reference if config.kl_coef else None
        spare = stage.batches(stage.rows, "grpo spare", times=max(1, config.recipe.resample))
        options = {"spare": spare, "seed": job.seed, "compiled": compiles(job.common, job.device)}
        options["environment"] = job.environment
        trainer = GRPOTrainer(stage.policy, reference, parts_of(reward), job.tokenizer, config, **options)
        yield sampled(stage, trainer, prompts=256)
    greedy = {"greedy_gold_before": greedy_before, "greedy_gold_after": stage.evaluate(stage.policy, greedy=True)}
    gold = {name: report.measures["gold_reward"] for name, report in greedy.items()}
    job.report(config.algorithm, before, stage.evaluate(stage.policy), **gold)


def tools(job: Job) -> Iterator[Work]:
    base = job.policy()
    job, reward = played.with_calculator(job)
    stage = job.stage(base, "prompts", reward=reward)
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        options = {"seed": job.seed, "environment": job.environment}
        trainer = GRPOTrainer(stage.policy, None, parts_of(reward), job.tokenizer, job.config, **options)
        yield sampled(stage, trainer, prompts=256)
    after = stage.evaluate(stage.policy)
    calls = {"calls_before": played.share_of_calls(job, before), "calls_after": played.share_of_calls(job, after)}
    job.report("GRPO", before, after, **calls)


def game(job: Job) -> Iterator[Work]:
    stage = job.stage(job.policy(), "prompts")
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        options = {"seed": job.seed, "environment": job.environment}
        trainer = GRPOTrainer(stage.policy, None, parts_of(job.given_reward), job.tokenizer, job.config, **options)
        yield sampled(stage, trainer, prompts=255)
    job.report(job.config.algorithm, before, stage.evaluate(stage.policy))


def online_dpo(job: Job) -> Iterator[Work]:
    base = job.policy()
    reward, accuracy = job.reward(base)
    stage = job.stage(base, "prompts", reward=reward)
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        models = stage.policy, stage.reference, judge_by(reward) if reward else None
        options = {"seed": job.seed, "environment": job.environment}
        yield sampled(stage, OnlineDPOTrainer(*models, job.tokenizer, job.config, **options))
    compare(job, stage, job.config.algorithm, before, reward_model_accuracy=accuracy)


def dpo(job: Job) -> Iterator[Work]:
    stage = job.stage(job.policy(), "pairs")
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        # TR-DPO moves its reference; evaluations need the frozen reference
        reference = copy_of(stage.policy) if job.config.ref_update_every else stage.reference
        updates = job.config.steps_for(len(stage.rows))
        yield sampled(stage, DPOTrainer(stage.policy, reference, job.tokenizer, job.config, updates))
    compare(job, stage, job.config.loss, before)


def unpaired(job: Job) -> Iterator[Work]:
    base = job.policy()
    model = base.transformer.config
    rows, held_out = (single_rows(part, model.max_position_embeddings) for part in job.rows("unpaired", model))
    stage = job.stage(base, "unpaired", (rows, held_out))
    before = stage.evaluate(stage.reference)
    if not stage.finished:
        models, updates = (stage.policy, stage.reference), job.config.steps_for(len(rows))
        yield sampled(stage, UnpairedTrainer(*models, job.tokenizer, job.config, updates, rows=rows))
    compare(job, stage, job.config.loss, before)


def distillation(job: Job) -> Iterator[Work]:
    student = given_student(job, job.common.student) if job.common.student else None
    teacher = to_device(job.policy(), job.common, job.device)
    shapes = [model.transformer.config for model in (teacher, student) if model]
    rows = job.rows("sft", min(shapes, key=lambda shape: shape.max_position_embeddings))
    student = student or programs.first_student(job, teacher, rows[0])
    stage = job.stage(student, "sft", rows, teacher=teacher, reads=("sft",))
    before = stage.evaluate(student)
    if not stage.finished:
        updates = job.config.steps_for(len(stage.rows))
        trainer = DistillationTrainer(student, teacher, job.tokenizer, job.config, updates, seed=job.seed)
        yield sampled(stage, trainer)
    compare(job, stage, "distillation", before)


def evaluated(stage: Stage, trainer: Any, batches: Batches, held_out: list[EncodedRow]) -> Work:
    """The work of a stage that its trainer evaluates on held-out rows."""
    run = partial(stage.run, trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
    return Work(stage, trainer, batches, run)


def sampled(stage: PolicyStage, trainer: Trainer, prompts: int = 128) -> Work:
    """The work of a stage that is evaluated on completions of held-out prompts."""
    return Work(stage, trainer, stage.batches(stage.rows), partial(stage.train_on, trainer, prompts))


def compare(job: Job, stage: PolicyStage, title: str, before: Any, **extra: float | None) -> None:
    """The report of an algorithm without a reward model of its own, with the share of prompts that it improved."""
    after = stage.evaluate(stage.policy)
    job.report(title, before, after, win_rate=win_rate(before, after), **extra)
