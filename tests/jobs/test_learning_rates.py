"""Learning rates of `--policy DIR`: by size, ten times as much for adapters, and the user's own value first."""

import json
import sys

import pytest

from minirlhf import algorithms
from minirlhf.algorithms.grpo_settings import GRPOConfig
from minirlhf.errors import InputError
from minirlhf.jobs import JobConfig
from minirlhf.jobs.learning_rates import (
    RATES,
    parameters,
    peak_rate,
    rates_of_adapters,
    settings_for_model,
    trained_parameters,
    with_rate,
)
from minirlhf.jobs.settings import RLJobConfig, sections
from minirlhf.model import ModelConfig, Transformer
from minirlhf.training.defaults import with_defaults
from minirlhf.training.optimizer import OptimizerConfig
from minirlhf.training.settings import parse_settings, settings_to_toml

CONFIGS = {  # section -> the dataclass of its example
    "sft": algorithms.SFTConfig,
    "reward_model": algorithms.RewardConfig,
    "process_reward": algorithms.ProcessRewardConfig,
    "ppo": algorithms.PPOConfig,
    "grpo": GRPOConfig,
    "online_dpo": algorithms.OnlineDPOConfig,
    "dpo": algorithms.DPOConfig,
    "unpaired": algorithms.UnpairedConfig,
    "distillation": algorithms.DistillationConfig,
}
HALF_BILLION = {  # Qwen2.5 0.5B
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "tie_word_embeddings": True,
}
SMALL = {**HALF_BILLION, "vocab_size": 300, "hidden_size": 28, "num_hidden_layers": 2, "intermediate_size": 64}


def folder_of(path, config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def read(monkeypatch, classes, *argv):
    """The settings of a program with these flags, as `Job.open` reads them."""
    monkeypatch.setattr(sys, "argv", ["program.py", *map(str, argv)])
    return settings_for_model(classes, parse_settings(classes, description="")["job"])


def test_the_rate_is_a_line_in_logarithms_between_one_and_a_hundred_million_parameters():
    # 10 million is half-way: the geometric mean of 8e-3 and 2e-5 is 4e-4
    for n, rate in [(1, 8e-3), (139_000, 8e-3), (10**6, 8e-3), (10**7, 4e-4), (10**8, 2e-5), (7 * 10**9, 2e-5)]:
        assert peak_rate(8e-3, 2e-5, n) == rate


@pytest.mark.parametrize("section", CONFIGS)
def test_every_algorithm_has_a_rate_for_large_models_and_a_tenfold_rate_for_adapters(section):
    cls = CONFIGS[section]
    whole, adapters = (with_rate(section, cls, 5 * 10**8, flag)().lr for flag in (False, True))
    assert 5e-7 <= whole <= 2e-5 and adapters == pytest.approx(10 * whole, rel=1e-9)
    assert with_rate(section, cls, 139_000, False) is cls and with_rate(section, cls, 139_000, True) is cls
    assert CONFIGS.keys() == RATES.keys()


def test_other_sections_stay_as_they_are():
    for section, cls in (("job", JobConfig), ("model", ModelConfig), ("mine", OptimizerConfig)):
        assert with_rate(section, cls, 10**9, False) is cls


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_experts": 4}, {"gated_mlp": False}])
def test_the_size_is_that_of_the_model_without_norms(changes):
    config = ModelConfig(vocab_size=300, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, **changes)
    assert parameters(config) == sum(p.numel() for p in Transformer(config).parameters() if p.dim() > 1)


def test_a_large_model_has_the_rates_of_its_size_and_of_its_adapters(monkeypatch, tmp_path, capsys):
    classes = sections("ppo", algorithms.PPOConfig, job=RLJobConfig, after=("sft", "reward"))
    folder = folder_of(tmp_path / "large", HALF_BILLION)
    settings = read(monkeypatch, classes, "--policy", folder)
    assert (settings["ppo"].lr, settings["reward_model"].lr) == (1e-6, 1e-5)
    line = f"{folder}: about 494.0 million parameters, --train all: reward_model.lr 1e-05, ppo.lr 1e-06\n"
    assert capsys.readouterr().out == line
    settings = read(monkeypatch, classes, "--policy", folder, "--train", "lora", "--ppo.lr_final", "0.5")
    assert (settings["ppo"].lr, settings["ppo"].lr_final, settings["reward_model"].lr) == (1e-5, 0.5, 1e-4)
    assert "lr = 1e-05" in settings_to_toml({"ppo": settings["ppo"]})  # what config.toml says
    capsys.readouterr()
    read(monkeypatch, classes, "--policy", folder, "--reward", "my.py:f")  # trains no reward model
    assert capsys.readouterr().out.endswith("--train all: ppo.lr 1e-06\n")
    read(monkeypatch, sections("ppo", algorithms.PPOConfig, after=("reward",)), "--policy", folder)
    assert capsys.readouterr().out.endswith("--train all: reward_model.lr 1e-05, ppo.lr 1e-06\n")


def test_a_small_model_keeps_the_rates_of_the_embedded_task(monkeypatch, tmp_path, capsys):
    for section, cls in CONFIGS.items():
        folder = folder_of(tmp_path / section, SMALL)
        classes = sections(section, cls)
        settings = read(monkeypatch, classes, "--policy", folder)
        assert settings[section] == classes[section]() and f"{section}.lr {cls().lr:g}" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["8e-3", "3e-4", "0.00002"])
def test_a_users_rate_stays_even_if_it_is_the_default_of_small_models(monkeypatch, tmp_path, value):
    classes, folder = sections("sft", algorithms.SFTConfig), folder_of(tmp_path / "large", HALF_BILLION)
    assert read(monkeypatch, classes, "--policy", folder, "--sft.lr", value)["sft"].lr == float(value)
    (tmp_path / "mine.toml").write_text(f"[sft]\nlr = {value}\n")
    assert read(monkeypatch, classes, "--policy", folder, "--config", tmp_path / "mine.toml")["sft"].lr == float(value)


def test_a_programs_own_default_is_a_default_of_small_models_too(monkeypatch, tmp_path):
    classes = sections("grpo", GRPOConfig, defaults={"grpo.lr": 3e-3, "grpo.steps": 7})
    settings = read(monkeypatch, classes, "--policy", folder_of(tmp_path / "large", HALF_BILLION))
    assert (settings["grpo"].lr, settings["grpo"].steps) == (1e-6, 7)
    settings = read(monkeypatch, classes, "--policy", folder_of(tmp_path / "small", SMALL))
    assert settings["grpo"].lr == 3e-3


def test_the_trained_model_decides_and_not_its_teacher(monkeypatch, tmp_path, capsys):
    job = with_defaults(JobConfig, train="all")
    job.trained = "data"  # as the flag --student of examples/distillation.py
    classes = {**sections("distillation", algorithms.DistillationConfig, after=("sft",)), "job": job}
    large, small = folder_of(tmp_path / "large", HALF_BILLION), folder_of(tmp_path / "small", SMALL)
    assert read(monkeypatch, classes, "--policy", small, "--data", large)["distillation"].lr == 2e-5
    assert read(monkeypatch, classes, "--policy", large, "--data", small)["distillation"].lr == 4e-3
    capsys.readouterr()
    assert read(monkeypatch, classes, "--policy", large)["distillation"].lr == 4e-3  # a new student, which is small
    assert capsys.readouterr().out == ""


def test_the_size_for_the_precision_is_that_of_the_trained_model(monkeypatch, tmp_path):
    classes = sections("sft", algorithms.SFTConfig)
    assert trained_parameters(read(monkeypatch, classes)) < 1e6  # the embedded model stays in fp32
    assert trained_parameters(read(monkeypatch, classes, "--model.hidden_size", 512)) > 1e6
    assert trained_parameters(read(monkeypatch, classes, "--policy", folder_of(tmp_path / "a", HALF_BILLION))) > 4e8
    assert trained_parameters(read(monkeypatch, classes, "--policy", folder_of(tmp_path / "b", SMALL))) < 1e6


def test_a_folder_without_a_model_is_refused_as_before(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="needed a model folder with config.json, found none"):
        read(monkeypatch, sections("sft", algorithms.SFTConfig), "--policy", tmp_path)


@pytest.mark.parametrize("section", ["sft", "ppo", "grpo", "dpo"])
def test_rates_of_adapters_replace_the_default_and_no_other_value(section, tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "model", HALF_BILLION)
    classes = sections(section, CONFIGS[section], job=RLJobConfig)
    whole = read(monkeypatch, classes, "--policy", folder)
    adapters = read(monkeypatch, classes, "--policy", folder, "--train", "lora")
    assert rates_of_adapters(whole, [section]) == {f"{section}.lr": adapters[section].lr}
    own = read(monkeypatch, classes, "--policy", folder, f"--{section}.lr", "3e-7")
    assert rates_of_adapters(own, [section]) == {}
