"""Every setting of every config: it is documented, and its default reads back from flags and from config.toml."""

import dataclasses
import math
from typing import get_args, get_origin, get_type_hints

import pytest

from minirlhf.algorithms import (
    DistillationConfig,
    DPOConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    ProcessRewardConfig,
    RewardConfig,
    SFTConfig,
    UnpairedConfig,
)
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig
from minirlhf.jobs import JobConfig
from minirlhf.model import LoRAConfig, ModelConfig
from minirlhf.training import OptimizerConfig, RunConfig, RunSettings, parse_settings
from minirlhf.training.fields import as_text, as_toml
from minirlhf.training.help import field_help, help_text
from minirlhf.training.settings import settings_to_toml

CONFIGS = [
    OptimizerConfig,
    SFTConfig,
    RewardConfig,
    PPOConfig,
    GRPOConfig,
    DPOConfig,
    UnpairedConfig,
    OnlineDPOConfig,
    DistillationConfig,
    ProcessRewardConfig,
    RunSettings,
    RunConfig,
    ModelConfig,
    LoRAConfig,
    SamplingConfig,
    JobConfig,
]
PROGRAM = {"job": JobConfig, "model": ModelConfig, "sft": SFTConfig, "reward_model": RewardConfig, "ppo": PPOConfig}
PROGRAM |= {"run": RunSettings, "grpo": GRPOConfig, "dpo": DPOConfig, "unpaired": UnpairedConfig}
PROGRAM |= {"online_dpo": OnlineDPOConfig, "distillation": DistillationConfig, "process_reward": ProcessRewardConfig}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_unit_and_a_meaning(config):
    notes = field_help(config)
    assert [field.name for field in dataclasses.fields(config) if field.name not in notes] == []
    assert all(len(meaning) > 8 for _, meaning in notes.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_frozen_and_need_no_argument(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), dataclasses.fields(config)[0].name, 1)


def test_defaults_read_back_from_the_file_they_are_written_to(tmp_path):
    defaults = parse_settings(PROGRAM, [], description="")
    assert defaults == {name: config() for name, config in PROGRAM.items()}
    (tmp_path / "config.toml").write_text(settings_to_toml(defaults))
    assert parse_settings(PROGRAM, ["--config", str(tmp_path / "config.toml")], description="") == defaults


@pytest.mark.parametrize(("section", "config"), PROGRAM.items())
def test_every_default_can_be_given_as_a_flag(section, config):
    argv = []
    for field in dataclasses.fields(config):
        value = getattr(config(), field.name)
        text = "none" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        name = f"{section}.{field.name}" if section != "job" else field.name
        argv.append(f"--{name}={text.lower() if isinstance(value, bool) else text}")
    assert parse_settings({section: config}, argv, description="")[section] == config()


def floats_of(config):
    """(name of a setting that takes a float, a value of its type made of this float), for each such setting."""
    for field in dataclasses.fields(config):
        hint = get_type_hints(config)[field.name]
        if float in (hint, *get_args(hint)):
            count = len(field.default or "a") if get_origin(hint) is tuple else 0
            yield field.name, lambda number, count=count: (number,) * count if count else number


@pytest.mark.parametrize(("section", "config"), PROGRAM.items())
def test_a_float_that_is_not_finite_or_beyond_64_bits_is_refused_by_name(section, config, tmp_path):
    for name, value in floats_of(config):
        flag = name if section == "job" else f"{section}.{name}"
        table = "" if section == "job" else f"[{section}]\n"
        for number in ("inf", "-inf", "nan", "1e300"):
            with pytest.raises(InputError, match=f"^--{flag}: needed .*, got "):
                parse_settings({section: config}, [f"--{flag}={as_text(value(number))}"], description="")
            (tmp_path / "a.toml").write_text(f"{table}{name} = {as_toml(value(float(number)))}\n")
            with pytest.raises(InputError, match=f"a.toml: {flag}: needed .*, got "):
                parse_settings({section: config}, ["--config", str(tmp_path / "a.toml")], description="")


LATER = {"rope_", "max_refused", "reward_weights"}  # refused where they are used


@pytest.mark.parametrize("config", CONFIGS)
def test_a_float_that_is_not_finite_is_refused_in_python_too(config):
    for name, value in floats_of(config):
        if not name.startswith(tuple(LATER)):
            for number in (math.inf, -math.inf, math.nan):
                with pytest.raises(InputError, match=name):
                    config(**{name: value(number)})


def test_help_lists_every_field_with_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # on a narrow terminal the default and the meaning stand on two lines
    text = help_text(PROGRAM, "")
    for section, config in PROGRAM.items():
        for field in dataclasses.fields(config):
            name = f"{section}.{field.name}" if section != "job" else field.name
            assert any(line.split()[:1] == [f"--{name}"] and len(line.split()) > 2 for line in text.splitlines()), name
