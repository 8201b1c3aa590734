"""--parallel and [sharding]: what is refused, what `auto` chooses, and how the settings become a strategy."""

import pytest
import torch

from minirlhf.algorithms import DPOConfig, PPOConfig, SFTConfig
from minirlhf.errors import InputError
from minirlhf.jobs import strategies
from minirlhf.jobs.best_of_n import BestOfNJobConfig
from minirlhf.jobs.effects import check_effects
from minirlhf.jobs.footprint import Footprint
from minirlhf.jobs.parallel import EFFECTS, ShardingConfig, strategy_of
from minirlhf.jobs.settings import JobConfig, sections, stage_settings
from minirlhf.model import ModelConfig
from minirlhf.runtime.parallel.strategy import Strategy
from minirlhf.training.same_settings import check_same_settings
from minirlhf.training.settings import settings_to_toml


def settings(parallel="auto", job=JobConfig, sharding=None, **flags):
    classes = sections("ppo", PPOConfig, job=job)
    built = {name: cls() for name, cls in classes.items()}
    return built | {"job": classes["job"](parallel=parallel, **flags), "sharding": ShardingConfig(**sharding or {})}


@pytest.fixture
def torchrun(monkeypatch):
    def torchrun(world, local=None):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local or world))

    return torchrun


def test_one_process_needs_no_flag_and_refuses_strategies_of_several(torchrun):
    for mode in ("auto", "none"):
        check_effects(settings(mode))
    for mode in ("ddp", "fsdp"):
        with pytest.raises(
            InputError, match=f"--parallel {mode}: needed several processes, got 1; start with torchrun"
        ):
            check_effects(settings(mode))
        torchrun(2)
        check_effects(settings(mode))
        torchrun(1)


def test_several_processes_without_a_strategy_are_refused(torchrun):
    torchrun(2)
    check_effects(settings())
    with pytest.raises(InputError, match="--parallel none: needed one process, got 2"):
        check_effects(settings("none"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": BestOfNJobConfig()}, "best_of_n samples in one process"),
        ({"dpo": DPOConfig(loss="aot")}, "the loss aot sorts the whole batch, so one process must hold it"),
    ],
)
def test_a_program_of_one_process_refuses_several_before_its_first_stage(torchrun, changes, reason):
    given = settings() | changes
    check_effects(given)
    torchrun(2)
    with pytest.raises(InputError, match=f"{reason}: got 2 processes; start it without torchrun"):
        check_effects(given)


OTHER = {"replicas": 2, "cpu_offload": True, "reshard_after_forward": False, "gather": "whole"}
OTHER |= {"param_dtype": "bf16", "shard_optimizer": True}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_is_refused_with_each_strategy_on_which_it_has_no_effect(torchrun, name):
    torchrun(4)
    for mode in ("auto", "ddp", "fsdp", "hsdp"):
        given = settings(mode, sharding={"replicas": 2} if mode == "hsdp" else {})
        given["sharding"] = ShardingConfig(**{name: OTHER[name]} | ({"replicas": 2} if mode == "hsdp" else {}))
        if mode in EFFECTS[name]:
            check_effects(given)
        else:
            with pytest.raises(InputError, match=f"sharding.{name}: has no effect with --parallel {mode}; give"):
                check_effects(given)


def test_every_setting_reaches_the_strategy(torchrun):
    torchrun(8, local=4)
    assert OTHER.keys() == EFFECTS.keys() == ShardingConfig.__dataclass_fields__.keys()
    many = settings("hsdp", sharding={name: value for name, value in OTHER.items() if name != "shard_optimizer"})
    expected = Strategy("hsdp", 2, True, False, "whole", torch.bfloat16)
    assert strategy_of(many, "hsdp") == expected
    assert strategy_of(settings("ddp", sharding={"shard_optimizer": True}), "ddp") == Strategy(
        "ddp", shard_optimizer=True
    )


def test_replicas_are_the_machines_and_must_divide_the_processes(torchrun):
    torchrun(8, local=4)
    check_effects(settings("hsdp"))
    assert strategy_of(settings("hsdp"), "hsdp").replicas == 2
    for replicas in (1, 3, 8):
        with pytest.raises(
            InputError, match=f"sharding.replicas: hsdp needed from 2 groups .*, got {replicas} groups of 8"
        ):
            check_effects(settings("hsdp", sharding={"replicas": replicas}))
    torchrun(4)  # one machine
    with pytest.raises(InputError, match="got 1 groups of 4 processes"):
        check_effects(settings("hsdp"))


GB = 1e9
SHAPE = ModelConfig(vocab_size=32_000, hidden_size=2048, num_hidden_layers=16)
# 50 GB of weights, gradients and moments, and 4 GB of activations: with freed blocks 62.1 GB
WHOLE = Footprint(weights=12.5 * GB, gradients=12.5 * GB, optimizer=25 * GB, activations=4 * GB, several=True)


@pytest.mark.parametrize(
    ("free", "processes", "machines", "expected"),
    [
        (70 * GB, 8, 1, "ddp"),
        (68 * GB, 8, 1, "ddp with ZeRO-1"),  # 90% of it may be used
        (45 * GB, 8, 1, "ddp with ZeRO-1"),  # moments of 3 GB: 32 GB, with freed blocks 37
        (40 * GB, 8, 1, "fsdp"),
        (40 * GB, 16, 2, "ddp with ZeRO-1"),  # moments of 1.6 GB
        (30 * GB, 16, 2, "hsdp"),  # slices in each machine: 10 GB, and gathered weights
        (13 * GB, 16, 2, "fsdp"),
        (1 * GB, 16, 2, "fsdp"),  # does not fit at all: the one that needs least
        (45 * GB, 2, 2, "fsdp"),  # one process on each machine
    ],
)
def test_auto_takes_the_first_strategy_that_fits(free, processes, machines, expected):
    strategy, memory = strategies.best(settings(), WHOLE, SHAPE, free, processes, machines)
    assert strategies.named(strategy) == expected
    assert memory.total <= 0.9 * free or free == GB


def test_a_run_may_go_on_with_another_strategy_but_not_with_other_numbers(tmp_path):
    def text(**changes):
        return settings_to_toml(stage_settings(settings(**changes), "ppo"))

    path = tmp_path / "config.toml"
    path.write_text(text())
    check_same_settings(path, text(parallel="fsdp", sharding={"cpu_offload": True, "replicas": 4}))
    with pytest.raises(InputError, match="param_dtype"):
        check_same_settings(path, text(parallel="fsdp", sharding={"param_dtype": "bf16"}))
    before = text().replace('parallel = "auto"\n', "").partition("[sharding]")  # a run of an earlier version
    path.write_text(before[0] + before[2].partition("\n\n")[2])
    assert "gather" not in path.read_text()
    check_same_settings(path, text())


def test_sft_has_the_section_too():
    assert "sharding" in sections("sft", SFTConfig)
