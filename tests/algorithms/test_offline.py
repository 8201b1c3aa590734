"""Settings of algorithms on given rows: how many steps a run makes, and the six configs that share them."""

import pytest

from minirlhf.algorithms import (
    DistillationConfig,
    DPOConfig,
    ProcessRewardConfig,
    RewardConfig,
    SFTConfig,
    UnpairedConfig,
)
from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.errors import InputError

CONFIGS = (SFTConfig, RewardConfig, DPOConfig, UnpairedConfig, DistillationConfig, ProcessRewardConfig)


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        (1000, 100),  # 4 epochs would be 500 steps
        (100, 50),  # 4 * 100 / 8
        (11, 6),  # 5.5 is rounded to an even number
        (1, 1),  # at least one step
    ],
)
def test_a_run_makes_its_steps_or_fewer_on_few_rows(rows, steps):
    assert OfflineConfig(steps=100, max_epochs=4.0, batch_size=8).steps_for(rows) == steps


def test_without_a_limit_of_epochs_a_run_makes_its_steps():
    assert OfflineConfig(steps=100, max_epochs=1e6, batch_size=8).steps_for(1) == 100


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_refuses_the_same_settings(config):
    for settings, text in [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"microbatch_tokens": 0}, "microbatch_tokens must be at least 1, got 0"),
        ({"max_epochs": 0.0}, "max_epochs must be above 0 and at most 1000000, got 0.0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
    ]:
        with pytest.raises(InputError, match=f"^{config.__name__}: {text}"):
            config(**settings)


def test_epochs_decide_the_steps_instead_of_steps_and_their_limit():
    assert OfflineConfig(epochs=3.0, batch_size=8).steps_for(100) == 38  # 3 * 100 / 8 = 37.5, to an even number
    assert OfflineConfig(epochs=20.0, batch_size=8).steps_for(100) == 250  # the default of max_epochs is 4
    assert OfflineConfig(epochs=0.5, batch_size=64).steps_for(3) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_epochs_beside_steps_are_refused(config):
    config(epochs=2.0, batch_size=4)
    for settings in ({"steps": 7}, {"max_epochs": 9.0}):
        with pytest.raises(InputError, match=f"^{config.__name__}: epochs decides alone"):
            config(epochs=2.0, **settings)
    with pytest.raises(InputError, match="epochs must be above 0"):
        config(epochs=0.0)
