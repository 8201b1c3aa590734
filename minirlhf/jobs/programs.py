"""The settings and first steps that belong to a single program, for its example and for `minirlhf train`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from minirlhf.adapters.select import ALL, HEAD
from minirlhf.adapters.shared_base import FourModels, put_three_adapters
from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.data.batches import Batches
from minirlhf.errors import InputError, check_range
from minirlhf.evaluation.policies import Report
from minirlhf.jobs.given_models import converted_base, narrower
from minirlhf.jobs.job import Job
from minirlhf.jobs.labelled import LabelledJobConfig
from minirlhf.jobs.models import choose_threads, load_finished, to_device
from minirlhf.jobs.opened import load_task
from minirlhf.jobs.prepare import new_policy
from minirlhf.jobs.settings import JobConfig, RLJobConfig
from minirlhf.jobs.stage import PolicyStage, Stage, open_stage
from minirlhf.model.policy import Policy
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained import load_adapter
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import world_size
from minirlhf.runtime.randomness import seed_everything
from minirlhf.tasks import rudeness
from minirlhf.tasks.sentiment import sentiment_task
from minirlhf.tasks.steps import steps_task
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import both_answers
from minirlhf.training.run import ADAPTER, finished_model


@dataclass(frozen=True)
class GRPOJobConfig(RLJobConfig):
    task: str = "arithmetic"  # [-] embedded task: arithmetic or reviews
    stop_sft_at: float | None = 0.4  # [share] end SFT once it solves this share of training prompts; none: all steps


# For answers of a few digits. Sentences need `--grpo.temperature 1`, more completions of fewer prompts, a kl_coef.
GRPO_DEFAULTS = {
    # to look up single digits: many narrow heads, short rotary wavelengths, an lm_head apart from the embedding
    **{"model.num_attention_heads": 8, "model.num_key_value_heads": 8},
    **{"model.rope_theta": 100.0, "model.tie_word_embeddings": False},
    # SFT stops early. Its learning rate is constant, so the stopping point does not depend on a schedule.
    **{"sft.steps": 3000, "sft.max_epochs": 20.0, "sft.batch_size": 64, "sft.lr": 3e-3, "sft.lr_final": 1.0},
    # many prompts with few completions each; groups of equal reward are replaced
    **{"grpo.steps": 500, "grpo.batch_size": 256, "grpo.minibatch_size": None, "grpo.group_size": 4},
    **{"grpo.resample": 1, "grpo.lr": 1e-3, "grpo.temperature": 1.2},
}


@dataclass(frozen=True)
class DistillationJobConfig(JobConfig):
    student: str | None = None  # [folder] train this model instead of a new one
    student_width: int = 32  # [numbers] hidden size of a new student; its MLP shrinks in the same ratio
    student_steps: int = 100  # [steps] of SFT before a new student meets the teacher
    trained: ClassVar[str] = "student"  # --policy is the teacher
    later_stages_only: ClassVar[tuple[str, ...]] = ("student", "student_width", "student_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student and (self.student_width, self.student_steps) != (32, 100):
            raise InputError("--student_width, --student_steps: --student is a trained model already; drop both")
        if self.student and not self.policy:
            raise InputError("--student: needs a teacher with the same tokenizer; give --policy DIR")


def first_student(job: Job, teacher: Policy, rows: list) -> Policy:
    """A smaller model after a few steps of SFT: the teacher can only correct a student that writes words."""
    choose_threads(teacher, job.common, job.device)
    student = new_policy(narrower(teacher.transformer.config, job.common.student_width), job.seed)
    student = to_device(student, job.common, job.device)
    config = replace(job.settings["sft"], steps=job.common.student_steps, epochs=None)
    batches = Batches.of(rows, config, seed=job.seed, stream="student")
    trainer = SFTTrainer(student, job.tokenizer, config, updates=len(batches))
    for batch in batches:
        trainer.step(batch)
    return student


@dataclass(frozen=True)
class ProcessRewardJobConfig(JobConfig):
    kind: Literal["process", "outcome"] = "process"  # [-] a label for each step, or a label for the whole answer
    rows: int = 20_000  # [rows] of the embedded task

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task != JobConfig.task:
            raise InputError("--task: this program has a task of its own; drop the flag")


def load_steps(job: ProcessRewardJobConfig) -> Task:
    """The embedded task of process reward models."""
    return steps_task(job.rows, job.seed)


def load_unpaired(job: JobConfig) -> Task:
    """The embedded task, with both answers of its pairs as single answers."""
    task = load_task(job)
    pairs = {"unpaired": task.pairs, "held_out_unpaired": task.held_out_pairs}
    return replace(task, **{name: both_answers(rows) for name, rows in pairs.items()})


# The labels fix the zero of the classifier's scores, so nothing else centres them.
CLASSIFIER = {"reward_model.batch_size": 64, "reward_model.lr": 4e-3, "reward_model.center_coef": 0.0}
SENTIMENT_DEFAULTS = {**CLASSIFIER, "sft.steps": 1400, "reward_model.steps": 400, "ppo.steps": 60, "ppo.kl_coef": 0.12}
# Rude words are easy to see, so soon all scores are equal. Then scaled advantages would be noise, so they are not
# scaled. A high kl_coef keeps the rest of the text; so does a low value_coef, because the value head shares the trunk.
DETOXIFY_DEFAULTS = {
    **{**CLASSIFIER, "sft.steps": 2600, "reward_model.steps": 150, "ppo.steps": 60, "ppo.value_warmup": 4},
    **{"ppo.kl_coef": 1.0, "ppo.lr": 1e-3, "ppo.lam": 1.0, "ppo.value_coef": 0.02},
    **{"ppo.whiten_advantages": False},
}


def load_sentiment(job: LabelledJobConfig) -> Task:
    """The embedded task of examples/sentiment.py."""
    return sentiment_task(job.rows, job.seed, job.prompt_words)


def load_rudeness(job: LabelledJobConfig) -> Task:
    """The embedded task of examples/detoxify.py."""
    if job.prompt_words != type(job).prompt_words:
        raise InputError("--prompt_words: the texts of this task have prompts; drop the flag, or give --data")
    return rudeness.rudeness_task(job.rows, job.seed)


def share_rude(job: Job, before: Report, after: Report) -> dict[str, float | None]:
    """The share of texts with a rude word before and after a stage. Your own texts have no list of rude words."""
    if job.task.gold is not rudeness.gold:
        return {}
    reports = {"rude_before": before, "rude_after": after}
    return {name: rudeness.share_rude(report.completions) for name, report in reports.items()}


@dataclass(frozen=True)
class MultiAdapterJobConfig(JobConfig):
    train: Literal["lora", "qlora"] = "lora"  # [-] adapters beside a frozen base, or beside a base held in 4 bits
    plays: ClassVar[bool] = False


def with_own_head(job: Job) -> Job:
    """Untie the head of a new base and put LoRA on it: in a tiny model, words used in the same positions differ only in
    the head. docs/models.md#adapters has the figures. If the user has chosen modules, they stay.
    """
    model, lora = replace(job.settings["model"], tie_word_embeddings=False), job.settings["lora"]
    lora = replace(lora, target_modules=(ALL, HEAD)) if lora.target_modules == (ALL,) else lora
    return replace(job, settings={**job.settings, "model": model, "lora": lora})


def four_models(job: Job, base: Transformer) -> FourModels:
    """The models of PPO on one frozen base, on the device. `base` is changed in place, or copied if it is in slices."""
    choose_threads(base, job.common, job.device)
    seed_everything(job.seed)
    base = converted_base(base, job.common)
    if world_size() > 1:
        from minirlhf.runtime.parallel.copies import shared

        base = shared(base, job.device)
    return FourModels.of(to_device(put_three_adapters(base, job.settings["lora"]), job.common, job.device))


def stage_on_one_base(job: Job, models: FourModels, reward: Reward) -> PolicyStage:
    """The stage that trains the policy's adapter; with the adapter of an earlier start if that has finished it."""
    rows, prompts = job.rows("prompts", models.reward.config, reserve=job.config.max_tokens)
    parts = {"policy": models.policy, "reference": models.reference, "value_model": models.value, "reward": reward}
    parts |= {"rows": rows, "held_out": prompts, "prompts": prompts}
    stage = PolicyStage(**vars(open_stage(job, "ppo", "ppo")), **parts)
    if stage.finished:
        load_adapter(models.policy, stage.folder / ADAPTER, "policy")
    return stage


@dataclass(frozen=True)
class LlamaJobConfig(MultiAdapterJobConfig):
    base_steps: int = 600  # [steps] of a new base on the texts of the task, without --policy
    tunes_policy: ClassVar[bool] = True  # --policy replaces the base; SFT trains an adapter of it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "base_steps", least=1)


# The steps suffice for a tiny Llama. The base and SFT have the same number of steps.
LLAMA_DEFAULTS = {"sft.steps": 600, "reward_model.steps": 800, "ppo.steps": 30, "ppo.kl_coef": 0.07}


def first_base(job: Job) -> tuple[Policy, Path]:
    """-> (`--policy`, or a new model that has learned the answers of the task as plain texts; its folder)."""
    if job.common.policy:
        base = job.base()
        choose_threads(base, job.common, job.device)
        return base, Path(job.common.policy)
    texts = {
        part: [{"prompt": "", "response": row["response"]} for row in getattr(job.task, part)]
        for part in ("sft", "held_out_sft")
    }
    settings = {**job.settings, "sft": replace(job.settings["sft"], steps=job.common.base_steps)}
    job = replace(job, folder=job.folder / "base", task=replace(job.task, **texts), settings=settings, encoded={})
    return job.policy(), job.folder / "sft"


def based_on(stage: Stage, folder: Path) -> Stage:
    """The stage with adapters of the model in `folder`: their files name it."""
    common = replace(stage.job.common, policy=str(folder))
    return replace(stage, job=replace(stage.job, settings={**stage.job.settings, "job": common}))


def merged_sft(job: Job) -> Policy:
    """The base with the adapter of SFT merged, as the stage has written it."""
    finished = agreed(lambda: str(finished_model(job.folder / "sft") or ""))  # the main process has just written it
    if not finished:  # `minirlhf check` writes no model
        return job.base()
    return load_finished(Path(finished), job.common, job.device)
