"""The program seq2seq: SFT of an encoder-decoder on rows with a response, then PPO, in one folder.

with open_job(help=__doc__) as job:
    if not job.finished("sft"):
        ...                      # SFTTrainer on job.first(), and its run
    policy, reference = job.tuned()
    ...                          # PPOTrainer and its run
    job.report("PPO", before, job.evaluate(job.trained("ppo"), reference))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from minirlhf.adapters.lora import LoRAConfig, apply_lora
from minirlhf.algorithms.ppo import PPOConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.data import Batches, read_rows
from minirlhf.errors import InputError, check_range
from minirlhf.evaluation.policies import Report, evaluate_policy
from minirlhf.extras.seq2seq import files, task
from minirlhf.extras.seq2seq.config import Seq2SeqConfig, read_config
from minirlhf.extras.seq2seq.folder import load_seq2seq
from minirlhf.extras.seq2seq.model import Seq2Seq
from minirlhf.extras.seq2seq.policy import Seq2SeqPolicy
from minirlhf.extras.seq2seq.tokenizer import Seq2SeqTokenizer
from minirlhf.jobs.checks import check_flags, with_commits
from minirlhf.jobs.effects import check_lora
from minirlhf.jobs.folder import find_output, take_output
from minirlhf.jobs.given_rewards import reward_of
from minirlhf.jobs.inputs import fingerprints, keep_inputs
from minirlhf.jobs.models import reference_for, resolve_model
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.pictures import pictured
from minirlhf.jobs.report import report
from minirlhf.jobs.settings import changed
from minirlhf.jobs.tracking import Tracking
from minirlhf.rewards.named import check_rows
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.runtime.device import session
from minirlhf.runtime.distributed import restarted, say
from minirlhf.runtime.log_level import log_level
from minirlhf.runtime.randomness import seed_everything
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import task_from_rows
from minirlhf.training.defaults import with_defaults
from minirlhf.training.lock import unlocked_at_end
from minirlhf.training.run import Run, RunConfig, RunSettings, Trainer, finished_model
from minirlhf.training.same_settings import check_same_settings
from minirlhf.training.settings import parse_settings, settings_to_toml

EVALUATED = 256  # held-out prompts, before and after PPO; half as many during a stage
SETTINGS = {
    "sft": with_defaults(SFTConfig, steps=800, batch_size=32, lr=4e-3, max_epochs=100.0),
    "ppo": with_defaults(PPOConfig, steps=30, batch_size=128, minibatch_size=64, max_tokens=40, lr=1e-3, kl_coef=0.02),
}


@dataclass(frozen=True)
class Seq2SeqJobConfig:
    """Plain flags, and the top of the TOML file."""

    output: str | None = None  # [folder] everything is written here; default: a fresh runs/seq2seq-001
    resume: bool = False  # [-] go on with the job in `output`
    seed: int = 0  # [-] of rows, initial weights and samples
    policy: str | None = None  # [folder] start from this T5, Flan-T5 or mT5 instead of a new small model
    data: str | None = None  # [file] your own rows {prompt, response} instead of the embedded task
    max_refused: float = 0.01  # [share] of your rows that may be unusable before the program stops
    reward: str | None = None  # [name or FILE.py:FUNCTION] the reward of PPO; needed with `data`
    skip_sft: bool = False  # [-] begin with PPO: the rows then need no responses; needs `policy`
    train: Literal["all", "lora"] = "all"  # [-] PPO trains all weights, or LoRA adapters on the Linears
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    threads: int | None = None  # [threads] of each process on a CPU; default: all
    tracker: tuple[str, ...] = ()  # [-] tensorboard, wandb, trackio, mlflow or FILE.py:FUNCTION: gets the metrics too
    log_level: Literal["quiet", "normal", "debug"] = "normal"  # [-] quiet: errors and the last line; debug: every step

    def __post_init__(self) -> None:
        check_range(self, "threads", least=1, most=1024)
        if self.data and not self.reward:
            raise InputError("--data: needed --reward FILE.py:FUNCTION, because your rows have no reward; write one")
        if self.reward and not self.data:
            raise InputError("--reward: the embedded task has its own reward; give --data too, or drop the flag")
        if self.skip_sft and not self.policy:
            raise InputError("--skip_sft: needed --policy DIR, because a new model has learned nothing; drop the flag")

    @property
    def tunes_policy(self) -> bool:
        """True if SFT comes before PPO, also with `policy`."""
        return not self.skip_sft

    @property
    def resumes(self) -> bool:
        return self.resume or restarted()


@dataclass(frozen=True)
class Seq2SeqJob(Opened):
    """The settings, the folder, the rows and the tokenizer of a program that has begun."""

    def finished(self, stage: str) -> Path | None:
        """The stage's final model, if an earlier start of the job has written it.

        Raises: InputError if the stage was finished with other settings.
        """
        if final := finished_model(self.folder / stage):
            check_same_settings(self.folder / stage / "config.toml", settings_to_toml(self._settings(stage)))
        return final

    def first(self) -> Seq2SeqPolicy:
        """The policy that the job begins with: `--policy`, or a small model with random weights."""
        if self.common.policy:
            return self._placed(load_seq2seq(resolve_model(self.common.policy), dtype=torch.float32))
        seed_everything(self.seed)
        return self._placed(Seq2Seq(self.shape()))

    def shape(self) -> Seq2SeqConfig:
        """The configuration of the first policy.   Raises: InputError if `--policy` is no encoder-decoder."""
        if self.common.policy:
            return read_config(resolve_model(self.common.policy))
        sizes = {"num_hidden_layers": 1, "num_decoder_layers": 1, "n_positions": 64}
        return Seq2SeqConfig(vocab_size=self.tokenizer.vocab_size, **sizes)

    def encode_all(self) -> None:
        """Keep the rows of all stages as ids.   Raises: InputError if a stage has no rows, or too few fit."""
        shape = self.shape()
        if not self.common.skip_sft:
            self.encode("sft", shape, reserve=1)
        self.encode("prompts", shape, reserve=self.config.max_tokens)

    def trained(self, stage: str) -> Seq2SeqPolicy:
        """The policy that a stage has written; the first policy if the job has skipped SFT.

        It is read from its folder, so a job that was resumed trains the same numbers as a job that was not.
        """
        folder = self.folder / stage / "model"
        return self.first() if self.common.skip_sft and stage == "sft" else self._placed(load_seq2seq(folder))

    def tuned(self) -> tuple[Seq2SeqPolicy, Seq2SeqPolicy]:
        """-> (the policy for PPO, with a value head and perhaps an adapter, its frozen reference)."""
        seed_everything(self.seed)
        policy = Seq2SeqPolicy(self.trained("sft").transformer, value_head=True).to(self.device)
        if self.common.train == "lora":
            policy = apply_lora(policy, self.settings["lora"])
        return policy, reference_for(policy)

    def batches(self, stage: str, rows: list) -> Batches:
        return Batches.of(rows, self.settings[stage], seed=self.seed, stream=stage)

    def run(self, stage: str, trainer: Trainer, rows: list, evaluate: Callable[[], dict[str, float]]) -> Run:
        """The run of a trainer in the stage's folder; it resumes if the job resumes."""
        own = vars(self.settings["run"])
        if stage == "sft":  # the best checkpoint is a checkpoint of PPO
            own = own | {"best_metric": None, "best_mode": None, "patience": 0, "final": "last"}
        config = RunConfig(**own, output=str(self.folder / stage), resume=self.common.resumes, seed=self.seed)
        parts = {"settings": self._settings(stage), "tokenizer": self.tokenizer, "files": files}
        batches = self.batches(stage, rows)
        parts["on_metrics"] = Tracking(self.common.tracker, self.folder / stage, len(batches))
        return Run(config, trainer, batches, evaluate=evaluate, **parts)

    def evaluate(
        self, policy: Seq2SeqPolicy, reference: Seq2SeqPolicy | None = None, prompts: int = EVALUATED
    ) -> Report:
        """The completions of held-out prompts and their measures. The noise is the same in every call."""
        rows = self.held_out("prompts", policy.transformer.config)[:prompts]
        sampling = self.settings["ppo"].sampling(self.tokenizer.eos_ids)
        options = {"reward": self.given_reward, "ref_policy": reference, "gold": self.task.gold, "seed": self.seed}
        return evaluate_policy(policy, self.tokenizer, rows, sampling, **options)

    report = report  # (title, before, after, **extra): a method

    def _placed(self, model: Seq2Seq) -> Seq2SeqPolicy:
        return Seq2SeqPolicy(model.float()).to(self.device)

    def _limits(self, part: str, model: Seq2SeqConfig, held_out: bool = False) -> dict[str, Any]:
        # SFT learns the last answer only: the encoder then reads the earlier turns, as it does in PPO
        return super()._limits(part, model, held_out) | {"train_on": "last"}

    def _settings(self, stage: str) -> dict[str, Any]:
        """The settings that a stage depends on: SFT on no section of PPO."""
        return {name: self.settings[name] for name in ("job", "sft", "run")} if stage == "sft" else self.settings


@contextmanager
def open_job(*, help: str, argv: list[str] | None = None) -> Iterator[Seq2SeqJob]:
    """Read the flags, then open device, folder, rows, tokenizer and reward.

    Raises: InputError for bad settings, before anything is written.
    """
    classes = {"job": Seq2SeqJobConfig, **SETTINGS, "lora": LoRAConfig, "run": RunSettings}
    settings = parse_settings(classes, argv, description=help)
    common, started = settings["job"], time.perf_counter()
    check_lora(settings)
    options = {"device": common.device, "precision": "fp32", "seed": common.seed, "threads": common.threads}
    with log_level(common.log_level), session(**options) as device, unlocked_at_end():
        check_flags(settings)
        folder, rows = find_output(common, "seq2seq"), rows_of(common)
        tokenizer = tokenizer_of(common, rows)
        reward = reward_for(common.reward, rows) if common.reward else rows.reward
        parts = with_commits(settings), folder, rows, tokenizer, device, started
        job = Seq2SeqJob("ppo", *parts, given_reward=reward)
        job.encode_all()
        files = fingerprints(job.settings)
        job = replace(job, folder=take_output(folder, common, "seq2seq", "ppo" if common.skip_sft else "sft"))
        keep_inputs(job.folder, files)
        if common.skip_sft and (names := changed(settings["sft"])):
            say(f"not read, because no such stage is trained: {', '.join(f'sft.{name}' for name in names)}")
        with pictured(job, ("sft",)):
            yield job


def rows_of(common: Seq2SeqJobConfig) -> Task:
    """The rows of `--data`, or the embedded task."""
    if common.data:
        return task_from_rows(read_rows(common.data, max_refused=common.max_refused))
    return task.embedded(common.seed)


def tokenizer_of(common: Seq2SeqJobConfig, rows: Task) -> Seq2SeqTokenizer:
    """The tokenizer of `--policy`, or one trained on the rows."""
    if common.policy:
        return Seq2SeqTokenizer.load(resolve_model(common.policy))
    return Seq2SeqTokenizer.train(rows.texts(), vocab_size=600)


def reward_for(name: str, rows: Task) -> Reward:
    """The reward of `--reward`, tried on two prompts.

    Raises: InputError for a folder, for several rewards, or a reward that fails.
    """
    if "," in name:
        raise InputError(f"--reward {name}: needed one reward, got several; write a function that adds them")
    reward = reward_of(name, _refused)
    check_rows(reward, [*rows.prompts, *rows.held_out_prompts], alone=True)
    tried = list(rows.prompts[:2])
    score_completions(reward, [row["prompt"] for row in tried], ["", "yes"][: len(tried)], tried)
    return reward


def _refused(folder: str) -> Reward:
    raise InputError(
        f"--reward {folder}: needed FILE.py:FUNCTION, got a folder; write a function that loads it: a RewardModelScorer"
    )
