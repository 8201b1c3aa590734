"""Speeds of rotary pairs by hand. A head of 8 numbers with theta 10,000 has the speeds 1, 0.1, 0.01 and 0.001."""

import math

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.model import ModelConfig
from minirlhf.model.config import FULL
from minirlhf.model.rope import frequencies, rope_tables

TURNS_1000 = 6283  # tokens in which the first pair turns 1,000 times, the last pair once


def config(**changes):
    return ModelConfig(hidden_size=32, head_dim=8, rope_theta=10_000.0, max_position_embeddings=25_132, **changes)


@pytest.mark.parametrize(
    ("settings", "length", "speeds", "factor"),
    [
        ({}, None, [1, 0.1, 0.01, 0.001], 1),
        ({"rope_type": "linear", "rope_factor": 4.0}, None, [0.25, 0.025, 0.0025, 0.00025], 1),
        # a text of 1.5 contexts: stretch = 2 * 1.5 - 1 = 2; the last pair takes all of it, the others 1/3 and 2/3
        (
            {"rope_type": "dynamic", "rope_factor": 2.0, "rope_original_context": 100},
            150,
            [1, 0.1 / 2 ** (1 / 3), 0.01 / 2 ** (2 / 3), 0.0005],
            1,
        ),
        ({"rope_type": "dynamic", "rope_factor": 2.0, "rope_original_context": 100}, None, [1, 0.1, 0.01, 0.001], 1),
        # turns 1000, 100, 10 and 1: above 20 unchanged, at 1 slower by 8, at 10 the share 9/19 is unchanged
        (
            {
                "rope_type": "llama3",
                "rope_factor": 8.0,
                "rope_original_context": TURNS_1000,
                "rope_low_freq_factor": 1.0,
                "rope_high_freq_factor": 20.0,
            },
            None,
            [1, 0.1, 0.01 * (9 / 19 + 10 / 19 / 8), 0.001 / 8],
            1,
        ),
        # 32 turns belong to pair 1.49, rounded down to 1; 1 turn belongs to pair 3; pair 2 is half way
        (
            {"rope_type": "yarn", "rope_factor": 4.0, "rope_original_context": TURNS_1000},
            None,
            [1, 0.1, 0.01 * (0.5 + 0.5 / 4), 0.001 / 4],
            1 + 0.1 * math.log(4),
        ),
        # a million turns belong to a pair before the first: the ramp begins at pair 0
        (
            {"rope_type": "yarn", "rope_factor": 4.0, "rope_original_context": TURNS_1000, "rope_beta_fast": 1e6},
            None,
            [1, 0.1 * (2 / 3 + 1 / 12), 0.01 * (1 / 3 + 2 / 12), 0.001 / 4],
            1 + 0.1 * math.log(4),
        ),
        # 1e-9 turns belong to a pair behind the last number of the head: the ramp ends at 7
        (
            {"rope_type": "yarn", "rope_factor": 4.0, "rope_original_context": TURNS_1000, "rope_beta_slow": 1e-9},
            None,
            [1, 0.1, 0.01 * (5 / 6 + 1 / 24), 0.001 * (4 / 6 + 2 / 24)],
            1 + 0.1 * math.log(4),
        ),
        (
            {
                "rope_type": "yarn",
                "rope_factor": 4.0,
                "rope_original_context": TURNS_1000,
                "rope_attention_factor": 1.5,
            },
            None,
            [1, 0.1, 0.00625, 0.00025],
            1.5,
        ),
    ],
)
def test_speeds_by_hand(settings, length, speeds, factor):
    found, attention = frequencies(config(**settings), FULL, length)
    assert found.tolist() == pytest.approx(speeds, rel=1e-4) and attention == pytest.approx(factor)


def test_dynamic_scaling_begins_behind_the_context_trained_for():
    dynamic = config(rope_type="dynamic", rope_factor=2.0, rope_original_context=100)
    plain = rope_tables(config(), FULL, 100, torch.device("cpu"))
    for columns, same in ((50, True), (100, True), (101, False)):
        cos, sin = rope_tables(dynamic, FULL, columns, torch.device("cpu"))
        assert torch.equal(cos[:50], plain[0][:50]) == torch.equal(sin[:50], plain[1][:50]) == same, columns
    linear = config(rope_type="linear", rope_factor=2.0, rope_original_context=100)
    short, long = (rope_tables(linear, FULL, n, torch.device("cpu"))[0][:50] for n in (50, 150))
    assert torch.equal(short, long) and not torch.equal(short, plain[0][:50])


@pytest.mark.parametrize("name", ["rope_low_freq_factor", "rope_high_freq_factor", "rope_beta_fast", "rope_factor"])
def test_settings_that_divide_by_zero_are_refused(name):
    with pytest.raises(InputError, match=f"ModelConfig: {name} must be"):
        config(**{"rope_type": "linear", "rope_factor": 2.0, name: 0.0})


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (5.0, 4.0)])
def test_limits_of_llama3_that_leave_no_ramp_are_refused(low, high):
    with pytest.raises(InputError, match="rope_low_freq_factor must be below rope_high_freq_factor, got"):
        config(rope_type="llama3", rope_factor=8.0, rope_low_freq_factor=low, rope_high_freq_factor=high)
