"""The settings that all programs share, and the settings that a stage depends on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.errors import check_range
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.distributed import restarted
from minirlhf.training.run import RunSettings


@dataclass(frozen=True)
class JobConfig:
    """Plain flags, such as `--seed`, and the top of the TOML file."""

    output: str | None = None  # [folder] everything is written here; default: a fresh runs/NAME-001
    resume: bool | str = False  # [-] go on with the job in `output`; finished stages are reused; step-N: from this
    #                             checkpoint of the program's own stage; previous: also if the newest is damaged
    seed: int = 0  # [-] of data, initial weights, shuffling and sampling
    task: str = "reviews"  # [-] embedded task: reviews or arithmetic
    data: str | None = None  # [files] your own rows instead of the embedded task: files or folders, with commas
    max_refused: float = 0.01  # [share] of your rows that may be unusable before the program stops
    ignore_columns: tuple[str, ...] = ()  # [-] columns of your rows to leave unused, although they have a meaning
    vocab_size: int = 2048  # [tokens] at most, in a tokenizer that the job trains
    gold: str | None = None  # [folder or FILE.py:FUNCTION] a reward that only evaluations measure, as gold_reward
    policy: str | None = None  # [folder] start from this model and its tokenizer instead of training an SFT model
    template: str | None = None  # [-] a built-in chat template, such as zephyr, instead of the template of `policy`
    template_variables: str | None = None  # [JSON] values of that template: '{"enable_thinking": false}'
    train: Literal["all", "lora", "qlora"] = "all"  # [-] trained weights of `policy`: all, LoRA adapters, or LoRA
    #                             adapters on a base held in 4 bits
    freeze: tuple[str, ...] = ()  # [patterns] parameters of `policy` that are not trained, such as model.layers.0
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    threads: int | None = None  # [threads] of each process on a CPU; default: 1 below a million parameters, else all
    gradient_checkpointing: Literal["none", "selective", "full"] = "none"  # [-] keep only the inputs of every second
    #                             block (selective) or of each block (full); compute them again in the backward pass
    compile: bool | None = None  # [-] fuse blocks and losses with torch.compile; default: on a GPU only
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 from a million parameters on, if device has it
    tracker: tuple[str, ...] = ()  # [-] tensorboard, wandb, trackio, mlflow or FILE.py:FUNCTION: gets the metrics too
    log_level: Literal["quiet", "normal", "debug"] = "normal"  # [-] quiet: errors and the last line; debug: every step

    trained: ClassVar[str] = "policy"  # the flag that names the model to train
    reward: ClassVar[str | None] = None  # a flag of the programs that take a reward model
    stop_after: ClassVar[str | None] = None  # a flag of the programs that can end before their last stage
    # Flags that SFT and reward training do not depend on, so that a job can change them and reuse both stages.
    later_stages_only: ClassVar[tuple[str, ...]] = ("reward", "reward_weights", "stop_after", "gold", "value")

    def __post_init__(self) -> None:
        check_range(self, "threads", least=1, most=1024)
        if not isinstance(self.resume, bool):
            from minirlhf.training.going_back import check_name  # here, so that the core loads no leaf

            check_name(self.resume)

    @property
    def resumes(self) -> bool | Literal["previous"]:
        """True if the user asked to resume, or if torchrun has restarted the job after a crash; or "previous"."""
        return "previous" if self.resume == "previous" else bool(self.resume) or restarted()


@dataclass(frozen=True)
class RLJobConfig(JobConfig):
    reward: str | None = None  # [folder, name or FILE.py:FUNCTION] use this reward model, or this function, instead of
    #                            training a reward model; docs/rewards.md has the names; or several, with commas
    reward_weights: tuple[float, ...] | None = None  # [-] a weight for each reward; default: 1 each


@dataclass(frozen=True)
class PipelineConfig(RLJobConfig):
    value: str | None = None  # [folder] start a value model of its own from this reward or value model
    stop_after: Literal["sft", "reward"] | None = None  # [stage] end the job after this stage; --resume goes on


def sections(
    section: str,
    config: type,
    *,
    job: type[JobConfig] = JobConfig,
    after: tuple[str, ...] = (),
    adapters: bool = True,
    defaults: dict[str, Any] | None = None,
) -> dict[str, type]:
    """Section name -> dataclass: all settings of one program.

    Args:
        section, config: name and dataclass of the program's own settings.
        after:    the stages before the program's own: "sft", "reward".
        adapters: False leaves out [lora].
        defaults: new default values, such as {"grpo.group_size": 4, "task": "arithmetic"}.
    """
    from minirlhf.adapters.lora import LoRAConfig
    from minirlhf.jobs.data_flags import with_data, with_data_flags
    from minirlhf.jobs.environment_flags import with_environment_flags
    from minirlhf.jobs.parallel import ShardingConfig, with_parallel

    job = with_environment_flags(job, section)
    classes = {"job": with_parallel(with_data_flags(job)), "model": ModelConfig, "sharding": ShardingConfig}
    classes |= {"lora": LoRAConfig} if adapters else {}
    classes |= {"sft": with_data(SFTConfig)} if "sft" in after else {}
    classes |= {"reward_model": with_data(RewardConfig)} if "reward" in after else {}
    classes |= {section: with_data(config), "run": RunSettings}
    if not defaults:
        return classes
    from minirlhf.training.defaults import with_defaults

    changes: dict[str, dict[str, Any]] = {}
    for name, value in defaults.items():
        owner, _, field = name.rpartition(".")
        changes.setdefault(owner or "job", {})[field] = value
    return classes | {owner: with_defaults(classes[owner], **fields) for owner, fields in changes.items()}


def stage_settings(settings: dict[str, Any], section: str, *more: str) -> dict[str, Any]:
    """The settings that one stage depends on: its own section, the common sections and `more`. They fill the
    stage's config.toml, and a resumed stage must have the same settings.
    """
    job = settings["job"]
    if section in ("sft", "reward_model"):
        later = [field for field in fields(job) if field.name in job.later_stages_only]
        job = replace(job, **{field.name: None for field in later})
    used = ("model", "sharding", *(() if job.train == "all" else ("lora",)), section, "run", *more)
    return {"job": job, **{name: settings[name] for name in used if name in settings}}


def changed(config: Any) -> list[str]:
    """The fields whose values differ from their defaults."""
    default = type(config)()
    return [field.name for field in fields(config) if getattr(config, field.name) != getattr(default, field.name)]
