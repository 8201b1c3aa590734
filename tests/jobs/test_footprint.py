"""The memory of a step: planned, counted operator by operator, and measured."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minirlhf.jobs.footprint import KEPT, SPLIT, Footprint, gathered_bytes
from minirlhf.model import ModelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import step_memory

ALGORITHMS = ("sft", "dpo", "grpo", "ppo")


CASES = [
    pytest.param("sft", 64, 0, marks=pytest.mark.slow),
    ("sft", 16_384, 1),
    ("sft", 16_384, 2),
    *((name, 16_384, 0) for name in ALGORITHMS),
]


@pytest.mark.parametrize(("algorithm", "micro", "every"), CASES)
def test_the_bytes_in_use_are_those_of_the_plan(algorithm, micro, every, monkeypatch):
    monkeypatch.setattr(step_memory, "NEW", 4)  # each token counts its operators
    work = algorithm, "small", micro, every
    assert step_memory.plan(*work).in_use == pytest.approx(step_memory.in_use(*work), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["S", "M"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_measured_peak_is_within_15_percent_of_the_plan(algorithm, shape):
    work = algorithm, shape, 16_384, 0
    assert step_memory.plan(*work).total == pytest.approx(step_memory.measured(*work), rel=0.15)


WHOLE = Footprint(weights=8, gradients=4, optimizer=16, activations=10, logits=3, cache=7, sampler=2, embedding=1)


def test_a_step_has_three_moments():
    sums = {name: sum(parts.values()) for name, parts in WHOLE.moments.items()}
    assert sums == {"sampling": 8 + 16 + 7 + 2, "backward begins": 8 + 16 + 10 + 3, "backward ends": 8 + 16 + 4 + 1}
    assert WHOLE.in_use == 37 and WHOLE.total == KEPT + (1 + SPLIT) * 37
    # the second micro-batch finds the gradients of the first
    assert replace(WHOLE, several=True).in_use == 37 + 4
    assert not replace(WHOLE, cache=0).moments["sampling"]  # SFT samples nothing


def test_slices_divide_weights_gradients_and_moments_and_zero_1_divides_moments():
    shape = ModelConfig()
    sliced = WHOLE.with_slices(4, shape, half=False)
    assert (sliced.weights, sliced.gradients, sliced.optimizer, sliced.activations) == (2, 1, 4, 10)
    assert sliced.gathered == gathered_bytes(shape) == 2 * WHOLE.with_slices(4, shape, half=True).gathered
    assert WHOLE.with_shared_optimizer(4) == replace(WHOLE, optimizer=4)
