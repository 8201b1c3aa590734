"""What the example programs share before training starts: common flags, output folder, rows, first models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from minirlhf.data.encoding import EncodedRow, encode_rows, encode_texts
from minirlhf.data.formats import read_rows
from minirlhf.errors import InputError
from minirlhf.evaluation import Report, comparison, evaluate_policy
from minirlhf.generation import SamplingConfig
from minirlhf.model import (
    ModelConfig,
    Policy,
    Transformer,
    adapter_names,
    apply_lora,
    copy_of,
    count_parameters,
    freeze,
    load_policy,
    memory_report,
    quantise_linears,
    reference_of,
)
from minirlhf.model.transformer import Trunk, run_block
from minirlhf.pretrained.config_json import config_to
from minirlhf.pretrained.weights import read_config
from minirlhf.rewards import Reward
from minirlhf.runtime.compile import maybe_compile
from minirlhf.runtime.device import resolve_device, resolve_precision, session
from minirlhf.runtime.distributed import barrier, gather, is_main, restarted
from minirlhf.runtime.randomness import seed_everything
from minirlhf.tasks.task import Task, embedded_task, task_from_rows
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import holds_anything, is_complete, write_whole, written_whole
from minirlhf.training.run import RunConfig, check_same_settings, finished_model
from minirlhf.training.settings import settings_to_toml

SMALL_MODEL = 1_000_000  # parameters
EVALUATION_PROMPTS = 1024  # before and after a stage; fewer while it runs
# settings that SFT and reward training do not depend on
LATER = ("reward", "stop_after", "student_width", "student_steps")
ALL_THREADS = torch.get_num_threads()  # torch's own choice, before anyone changed it


@dataclass(frozen=True)
class JobConfig:
    output: str | None = None  # [folder] where everything is written; none makes a fresh runs/NAME-001
    resume: bool = False  # [-] go on with the job in `output`: finished stages are reused
    seed: int = 0  # [-] of data, initial weights, shuffling and sampling
    task: str = "reviews"  # [-] embedded task: reviews or arithmetic
    data: str | None = None  # [file] your own rows instead: JSONL or JSON, plain or .gz
    max_refused: float = 0.01  # [share] of your rows that may be unusable before the run stops
    vocab_size: int = 2048  # [tokens] at most, when a tokenizer is trained
    policy: str | None = None  # [folder] start from this model (with its tokenizer) instead of training one
    template: str | None = None  # [-] a built-in chat template for rows of turns instead of that model's, as zephyr
    train: Literal["all", "lora", "qlora"] = "all"  # [-] of a model that is there already: all weights, or adapters
    #                             beside frozen ones ([lora] says which), or these beside frozen ones of 4 bits
    freeze: tuple[str, ...] = ()  # [patterns] parameters of that model which stay as they are, such as model.layers.0
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    threads: int | None = None  # [threads] of each process on a CPU; none: one for models of under a million
    #                             parameters, where a second only waits and suffers from every neighbour, else all
    gradient_checkpointing: bool = False  # [-] keep only each block's input for backward: less memory, a third slower
    compile: bool | None = None  # [-] fuse blocks and losses with torch.compile; none: on a GPU
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 on a GPU that has it, fp32 elsewhere

    def __post_init__(self) -> None:
        if self.freeze and self.train != "all":
            raise InputError(f"--freeze: with --train {self.train} all but adapters is frozen; see lora.target_modules")


@dataclass(frozen=True)
class RLJobConfig(JobConfig):
    reward: str | None = None  # [folder] use this reward model instead of training one


@dataclass(frozen=True)
class PipelineConfig(RLJobConfig):
    stop_after: Literal["sft", "reward"] | None = None  # [stage] end the job there; --resume goes on


def open_output(job: JobConfig, name: str) -> Path:
    """The job's folder, agreed on by all processes: `output`, or a fresh runs/NAME-001, or with `resume` the last.

    Raises: InputError if it holds something already and `resume` was not asked for.
    """
    path, problem = gather(_choose_output(job, name) if is_main() else None)[0]
    if problem:
        raise InputError(f"{path}: {problem}")
    return Path(path)


def _choose_output(job: JobConfig, name: str) -> tuple[str, str]:
    """The folder's path, and what is wrong with it, if anything. Nothing is made yet: a job may still be refused."""
    taken = sorted(Path("runs").glob(f"{name}-[0-9][0-9][0-9]"))
    number = int(taken[-1].name[-3:]) if taken else 0
    newest = taken[-1] if taken and resumes(job) else Path("runs") / f"{name}-{number + 1:03d}"
    folder = Path(job.output or newest)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return str(folder), f"needed a folder that can be written for --output, but {there} is none; choose another"
    if holds_anything(folder) and not resumes(job):
        return str(folder), "holds a run already; give --resume or choose another --output"
    if job.resume and not holds_anything(folder):
        say(f"{folder}: nothing to resume, starting afresh")
    return str(folder), ""


def resumes(job: JobConfig) -> bool:
    """True if asked for, or if torchrun has restarted this job after a crash."""
    return job.resume or restarted()


def load_task(job: JobConfig) -> Task:
    """The rows: the embedded task, or the user's file, whose kind and counts are printed."""
    if job.data is None:
        return embedded_task(job.task, job.seed)
    dataset = read_rows(job.data, max_refused=job.max_refused)
    task = task_from_rows(dataset)
    counts = f"{len(task.prompts):,} prompts to train on, {len(task.held_out_prompts):,} held out"
    say(f"{dataset.summary()}\n{dataset.path}: {counts}")
    return task


def load_tokenizer(job: JobConfig, task: Task, folder: Path) -> Tokenizer:
    """That of `--policy`, or the one already trained in this folder, or a new one trained on the task's texts."""
    if job.policy:
        read_config(resolve_model(job.policy))  # if it is no model's folder at all, that is to be said first
        tokenizer = Tokenizer.load(resolve_model(job.policy))
        return tokenizer.with_template(job.template) if job.template else tokenizer
    if is_main() and not is_complete(folder / "tokenizer"):
        tokenizer = Tokenizer.train(task.texts(), job.vocab_size)
        with written_whole(folder / "tokenizer") as aside:
            tokenizer.save(aside)
    barrier()  # one process trains it, all read the same
    tokenizer = Tokenizer.load(folder / "tokenizer")
    say(f"tokenizer: {tokenizer.vocab_size:,} tokens, {folder / 'tokenizer'}")
    return tokenizer


def first_policy(job: JobConfig, config: ModelConfig, tokenizer: Tokenizer) -> Policy:
    """That of `--policy`, whatever `config` says, or random weights, the same for the same seed whatever ran before."""
    if job.policy:
        policy = load_policy(resolve_model(job.policy), dtype=weights_dtype(job))
        check_vocabulary(policy.transformer.config, tokenizer, job.policy)
        if unread := [*(f"model.{name}" for name in changed(config)), *({"vocab_size"} & set(changed(job)))]:
            say(f"not read, since {job.policy} says what the model is like: {', '.join(unread)}")
        return policy
    seed_everything(job.seed)
    return Policy(Transformer(replace(config, vocab_size=tokenizer.vocab_size)))


def weights_dtype(job: JobConfig) -> torch.dtype | None:
    """fp32 for weights that are trained, in bf16 small updates would vanish. Frozen ones stay as their files have them,
    if the job computes in bf16 anyway or 4 bits are made of them.
    """
    return None if job.train == "qlora" or (job.train == "lora" and computes_in_bf16(job)) else torch.float32


def computes_in_bf16(job: JobConfig) -> bool:
    return resolve_precision(job.precision, resolve_device(job.device)) == torch.bfloat16


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Raise InputError if a tokenizer has ids that the model beside it does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary holds "
            f"{config.vocab_size}; they are not of one model"
        )


def check_readable(reader: Tokenizer, prompts: list[dict], folder: Path) -> None:
    """Raise InputError now, and not after hours, if a reward model's chat template refuses some prompts."""
    encoded = encode_texts(reader, prompts, ())
    refusals = [(row, one) for row, one in zip(prompts, encoded, strict=True) if isinstance(one, InputError)]
    if refusals:
        row, why = refusals[0]
        raise InputError(
            f"{folder}: this reward model's chat template refuses {len(refusals)} of {len(prompts)} prompts, such as "
            f"line {row.get('line')} ({why}); leave these rows out"
        )


def encode(
    job: JobConfig,
    tokenizer: Tokenizer,
    task: Task,
    part: str,
    responses: tuple[str, ...],
    config: ModelConfig,
    reserve: int = 1,
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """One part of a task ("sft", "pairs", "prompts") in ids -> (rows to train on, held-out rows); prints the counts."""
    fit = {"context": config.max_position_embeddings, "reserve": reserve, "source": task.name}
    encoded = encode_rows(tokenizer, task.need(part), responses, max_refused=job.max_refused, **fit)
    # of held-out rows those that fit are enough
    held_out = encode_rows(tokenizer, getattr(task, f"held_out_{part}"), responses, max_refused=1.0, **fit)
    say(encoded.summary(f"{task.name}: {part} in ids"))
    return encoded.rows, held_out.rows


def session_of(settings: dict[str, Any]) -> AbstractContextManager[torch.device]:
    """Device, precision, processes. Raises: InputError if a setting could not act, before anything is made."""
    check_effects(settings)
    job = settings["job"]
    return session(device=job.device, precision=job.precision, seed=job.seed, threads=job.threads)


def check_effects(settings: dict[str, Any]) -> None:
    """Raise InputError for what was set and would not be read, or not be saved: who sets it believes that it acts."""
    job = settings["job"]
    if not job.policy:
        config_to(settings["model"])  # what no config.json can say could not be saved
    if job.template and not job.policy:
        raise InputError("--template: is for a folder that has no chat template; give --policy DIR")
    if job.train == "all" and "lora" in settings and (told := changed(settings["lora"])):
        raise InputError(f"--lora.{told[0]}: all weights are trained; give --train lora or qlora")


def changed(config: Any) -> list[str]:
    """The fields that do not have their defaults."""
    usual = type(config)()
    return [field.name for field in fields(config) if getattr(config, field.name) != getattr(usual, field.name)]


def choose_threads(model: nn.Module, job: JobConfig, device: torch.device) -> None:
    """As the model that is about to be trained wants: one thread if it is small, else all; or what `--threads` says."""
    if device.type == "cpu" and job.threads is None:
        small = sum(p.numel() for p in model.parameters()) < SMALL_MODEL
        torch.set_num_threads(1 if small else ALL_THREADS)


def place(model: nn.Module, job: JobConfig, device: torch.device) -> nn.Module:
    """Put a model where it trains, with the job's settings of memory and speed."""
    for module in model.modules():
        if isinstance(module, Trunk):
            module.gradient_checkpointing = job.gradient_checkpointing
            module.run_block = maybe_compile(run_block, compiles(job, device))
    return model.to(device)


def adapt(model: nn.Module, settings: dict[str, Any], device: torch.device) -> nn.Module:
    """Leave of a model, in place, only that to be trained which `--train` and `--freeze` say, and put it there."""
    job = settings["job"]
    if job.train == "all":
        # what has no such part, a reward model without lm_head, has nothing to freeze there
        freeze(model, job.freeze, strict=isinstance(model, Policy))
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError(f"--freeze {','.join(job.freeze)}: nothing is left to be trained; name fewer")
        if job.freeze:
            say("{:,} of {:,} numbers are trained".format(*count_parameters(model)))
    else:
        seed_everything(job.seed)  # the same adapter whatever ran before
        if job.train == "qlora":
            quantise_linears(model)
            if not computes_in_bf16(job):
                model.float()  # the rest; 4 bits stay what they are
            report = memory_report(model)
            say(f"in 4 bits: {report['quantised_bytes']:,} bytes, {report['quantised_share_of_fp32']:.3f} of fp32")
        apply_lora(model, settings["lora"])
        say("{}: {:,} of {:,} numbers are trained".format(job.train, *count_parameters(model)))
    return place(model, job, device)


def check_base(job: JobConfig) -> None:
    """Raise InputError if a program whose first stage is its only one is to adapt random weights."""
    asked = f"--train {job.train}" if job.train != "all" else f"--freeze {','.join(job.freeze)}" if job.freeze else ""
    if asked and not job.policy:
        raise InputError(f"{asked}: needs a model that is there already, random weights are no base; give --policy DIR")


def reference_for(policy: Policy, moves: bool = False) -> Policy:
    """Where the policy starts from: the base itself, which costs nothing, if adapters are trained, else a copy."""
    return copy_of(policy) if moves or not adapter_names(policy) else reference_of(policy)


def compiles(job: JobConfig, device: torch.device) -> bool:
    return device.type == "cuda" if job.compile is None else job.compile


def resolve_model(folder: str | Path) -> Path:
    """A model's folder from what a user types: the folder itself, or a finished run whose model is meant."""
    final = finished_model(folder)
    return final if final and not (Path(folder) / "config.json").exists() else Path(folder)


def settings_of(settings: dict[str, Any], section: str) -> dict[str, Any]:
    """The settings that one stage depends on: what its config.toml holds, and what may not change when it resumes."""
    common = settings["job"]
    if section in ("sft", "reward_model"):
        common = replace(common, **{one.name: one.default for one in fields(common) if one.name in LATER})
    used = ("model", section, "run") if common.train == "all" else ("model", "lora", section, "run")
    return {"job": common, **{name: settings[name] for name in used if name in settings}}


def finished_stage(settings: dict[str, Any], folder: Path, stage: str) -> Path | None:
    """The final model of a stage that finished with these settings, or None if it has yet to be trained.

    Raises: InputError if it finished with others.
    """
    final = finished_model(folder / stage)
    if final:
        check_same_settings(folder / stage / "config.toml", settings_to_toml(settings))
        say(f"{stage}: finished already, {final}")
    return final


def stage_run(settings: dict[str, Any], folder: Path, stage: str) -> RunConfig:
    """The run of one stage: its own folder, resumed if the job is."""
    job = settings["job"]
    base = resolve_model(job.policy or folder / "sft")
    where = {"output": str(folder / stage), "resume": resumes(job), "base": os.path.abspath(base)}
    return RunConfig(**vars(settings["run"]), **where, seed=job.seed)


def steps_for(steps: int, max_epochs: float, rows: int, batch_size: int) -> int:
    """`steps`, or fewer where they would go over few rows too often."""
    return max(1, min(steps, round(max_epochs * rows / batch_size)))


def evaluator(
    common: JobConfig,
    task: Task,
    tokenizer: Tokenizer,
    held_out: list[EncodedRow],
    sampling: SamplingConfig,
    ref_policy: Policy,
    reward: Reward | None = None,
) -> Callable[..., Report]:
    """(policy, prompts=1024) -> what it writes on so many held-out prompts, always with the same noise."""

    def evaluate(policy: Policy, prompts: int = EVALUATION_PROMPTS) -> Report:
        fixed = {"reward": reward, "ref_policy": ref_policy, "gold": task.gold, "seed": common.seed}
        return evaluate_policy(policy, tokenizer, held_out[:prompts], sampling, **fixed)

    return evaluate


def report(folder: Path, stage: str, before: Report, after: Report, seconds: float, **extra: float | None) -> None:
    """Show what a stage changed, and write summary.json."""
    kept = ("gold_reward", "model_reward", "grammatical", "length", "distinct_2")
    summary = {
        "seconds": round(seconds, 1),
        "before": {name: before.measures[name] for name in kept},
        "after": {name: after.measures[name] for name in kept},
        "kl": after.measures["kl"],
        **extra,
    }
    if is_main():
        write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    say(f"\n{comparison(before, after, stage)}\n")
    for name, value in extra.items():
        if value is not None:
            say(f"{name.replace('_', ' ')}: {value:.3f}")
    say(f"{seconds:.0f} s; everything is in {folder}")


def say(text: str) -> None:
    """Print once, not once per process."""
    if is_main():
        print(text, flush=True)
