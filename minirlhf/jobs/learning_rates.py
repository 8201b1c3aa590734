"""Learning rates for `--policy DIR`. The defaults in the settings are for models of a few 100,000 parameters."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from minirlhf.jobs.models import resolve_model
from minirlhf.model.footprint import parameters
from minirlhf.pretrained.weights import read_config
from minirlhf.training.defaults import with_defaults
from minirlhf.training.settings import parse_settings

SMALL, LARGE = 1e6, 1e8  # parameters
# Section -> peak learning rate of a model of LARGE or more parameters, all of them trained. The rates are common ones
# for models of 0.5 to 7 billion parameters; TRL has the same or, for reward models, a larger one.
RATES = {
    "sft": 2e-5,
    "reward_model": 1e-5,
    "process_reward": 1e-5,
    "ppo": 1e-6,
    "grpo": 1e-6,
    "online_dpo": 5e-7,
    "dpo": 1e-6,
    "unpaired": 1e-6,
    "distillation": 2e-5,
}
ADAPTERS = 10  # times the rate of whole models: Schulman et al. 2025, "LoRA Without Regret"


def settings_for_model(classes: dict[str, type], job: Any, argv: list[str] | None = None) -> dict[str, Any]:
    """Read the settings again, with defaults for the size of the model that the job is given, and print the rates.

    classes: section -> dataclass.   argv: as `parse_settings`.   A learning rate that the user has set stays.
    Raises: InputError if the folder holds no model.
    """
    settings, folder = parse_settings(with_rates(classes, job), argv, description=""), getattr(job, job.trained)
    if folder is None:
        return settings
    n = parameters(read_config(resolve_model(folder))[0])
    # SFT is skipped, because the folder takes its place; the only stage of a program is never skipped
    skipped = {"sft"} if not getattr(job, "tunes_policy", False) else set()
    skipped |= {"reward_model"} if job.reward else set()
    used = [section for section in RATES if section in classes]
    used = [section for section in used if section not in skipped] or used
    if os.environ.get("RANK", "0") == "0" and job.log_level != "quiet":  # the processes have not joined yet
        rates = ", ".join(f"{section}.lr {settings[section].lr:g}" for section in used)
        print(f"{folder}: about {n / 1e6:,.1f} million parameters, --train {job.train}: {rates}", flush=True)
    return settings


def with_rates(classes: dict[str, type], job: Any) -> dict[str, type]:
    """The classes with default learning rates for the model that the job is given.   Raises: InputError as above."""
    folder = getattr(job, job.trained)
    if folder is None:
        return classes
    n = parameters(read_config(resolve_model(folder))[0])
    return {section: with_rate(section, cls, n, job.train != "all") for section, cls in classes.items()}


def with_rate(section: str, cls: type, n: int, adapters: bool) -> type:
    """The dataclass of a section with a default `lr` for a model of n parameters."""
    if section not in RATES:
        return cls
    small = default_of(cls, "lr")
    lr = peak_rate(small, RATES[section] * (ADAPTERS if adapters else 1), n)
    return cls if lr == small else with_defaults(cls, lr=lr)


def rates_of_adapters(settings: dict[str, Any], sections: Sequence[str]) -> dict[str, float]:
    """Flag -> the default learning rate of adapters, for each section that now has the default of whole models."""
    factor, found = ADAPTERS ** share_of_large(trained_parameters(settings)), {}
    for section in sections:
        lr = settings[section].lr
        if section in RATES and lr == default_of(type(settings[section]), "lr"):
            found[f"{section}.lr"] = two_digits(lr * factor)
    return found


def peak_rate(small: float, large: float, n: int) -> float:
    """`small` up to SMALL parameters, `large` from LARGE on; between them a straight line in the logarithms."""
    share = share_of_large(n)
    return two_digits(small ** (1 - share) * large**share) if share else small


def share_of_large(n: int) -> float:
    """The place of n between SMALL (0) and LARGE (1), in logarithms."""
    return min(max(math.log(n / SMALL) / math.log(LARGE / SMALL), 0.0), 1.0)


def two_digits(rate: float) -> float:
    """As people write learning rates."""
    return float(f"{rate:.1e}")


def default_of(cls: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(cls) if field.name == name)


def trained_parameters(settings: dict[str, Any]) -> int:
    """About the number of weights of the model that a job trains: of the folder that it is given, or of [model]."""
    job = settings["job"]
    folder = getattr(job, job.trained)
    return parameters(read_config(resolve_model(folder))[0] if folder else settings["model"])  # "" is refused later
