"""Keyed uniforms: splitmix64 against plain Python integers, and the statistics of the numbers."""

import random
import zlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.runtime.randomness import keyed_uniforms, permutation, seed_everything, splitmix64

MASK = 2**64 - 1
keys = st.integers(-(2**63), 2**63 - 1)
few = settings(max_examples=100)


def mix(x: int) -> int:
    """Steele et al. 2014, Fig. 10, in integers that cannot overflow."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, stream: str, *keys: int) -> float:
    state = mix(mix(seed % 2**63) ^ zlib.crc32(stream.encode()))
    for key in keys:
        state = mix(state ^ (key & MASK))
    return (state >> 11) / 2**53


@few
@given(keys)
def test_splitmix64_equals_its_definition_in_64_bit_integers(x):
    assert splitmix64(torch.tensor(x)).item() & MASK == mix(x & MASK)


def test_splitmix64_known_answers():
    # the first outputs of the published generator seeded with 0 and with 1234567
    assert splitmix64(torch.tensor(0)).item() & MASK == 0xE220A8397B1DCDAF
    assert splitmix64(torch.tensor(1234567)).item() & MASK == 6457827717110365317


@few
@given(st.integers(-(2**70), 2**70), st.text(max_size=8), st.lists(keys, max_size=4))
def test_uniforms_are_the_chained_hash_of_their_key_in_0_1(seed, stream, numbers):
    u = keyed_uniforms(seed, stream, *numbers).item()
    assert u == uniform(seed, stream, *numbers) and 0 <= u < 1


def test_a_number_depends_only_on_its_key_and_keys_broadcast():
    rows, positions = torch.arange(50), torch.arange(7)
    table = keyed_uniforms(3, "x", rows[:, None], positions)
    assert table.shape == (50, 7) and table.dtype == torch.float64
    assert torch.equal(keyed_uniforms(3, "x", rows[[40, 2]], 5), table[[40, 2], 5])
    assert keyed_uniforms(3, "x", 40, 5) == table[40, 5]


def test_uniforms_have_the_right_moments_and_no_correlation():
    # n = 100,000. Standard deviation of the mean: 0.29 / sqrt(n) = 0.0009; of a correlation: 1 / sqrt(n) = 0.003.
    u = keyed_uniforms(0, "x", torch.arange(100_000))
    assert abs(u.mean() - 1 / 2) < 0.004 and abs(u.var() - 1 / 12) < 0.002
    counts = torch.histc(u, bins=100, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square of 99 degrees: 5 deviations above its mean
    others = [u.roll(1), keyed_uniforms(1, "x", torch.arange(100_000)), keyed_uniforms(0, "y", torch.arange(100_000))]
    others += [keyed_uniforms(0, "x", torch.arange(100_000), 0), keyed_uniforms(0, "x", 0, torch.arange(100_000))]
    for v in others:
        assert abs(torch.corrcoef(torch.stack([u, v]))[0, 1]) < 0.016


def test_neighbouring_and_distant_seeds_differ():
    seeds = [0, 1, -1, 2**31, 2**32, 2**62]
    assert len({keyed_uniforms(seed, "x", 0).item() for seed in seeds}) == len(seeds)


def test_the_order_of_keys_matters():
    assert keyed_uniforms(0, "x", 1, 2) != keyed_uniforms(0, "x", 2, 1)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_depends_on_epoch_seed_and_stream(n):
    orders = [
        permutation(n, 0, "x", 0),
        permutation(n, 0, "x", 1),
        permutation(n, 1, "x", 0),
        permutation(n, 0, "y", 0),
    ]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert permutation(n, 0, "x", 0) == orders[0]
    if n == 1000:
        assert len({tuple(order) for order in orders}) == 4
        assert sum(i == position for position, i in enumerate(orders[0])) < 10


def test_permutations_of_three_are_equally_frequent():
    counts = {}
    for epoch in range(600):
        order = tuple(permutation(3, 0, "x", epoch))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and all(60 < n < 140 for n in counts.values())  # 100 within 4 standard deviations of 9


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_seed_everything_seeds_python_numpy_and_torch(seed):
    def draw():
        seed_everything(seed)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() == first
    seed_everything(seed + 1)
    assert all(a != b for a, b in zip((random.random(), numpy.random.rand(), torch.rand(1).item()), first, strict=True))
