"""A mixture of two transformers: its logits, its cache, and generate() with it. A mixture of their weights."""

import copy

import pytest
import torch
from torch.testing import assert_close

from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import LoRAConfig, ModelConfig, Policy, apply_lora, quantise_linears
from minirlhf.model.cache import KVCache
from minirlhf.model.mixture import GeometricMixture, halves_of, move_towards

PROMPTS = [[1, 5, 9], [1, 2], [1, 30, 31, 32, 33], [1]]


@pytest.fixture
def two(make):
    """Two transformers with other weights."""
    return make(0), make(1)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_mixed_logits(make, ids, mask, tied):
    policy, reference = (make(seed, tie_word_embeddings=tied).double() for seed in (0, 1))
    for weight in (0.0, 0.25, 1.0):
        expected = (1 - weight) * policy(ids, mask) + weight * reference(ids, mask)
        assert_close(GeometricMixture(policy, reference, weight)(ids, mask)[mask], expected[mask])


def test_its_distribution_is_the_normalised_geometric_mean(two, ids):
    p, q = (model(ids).softmax(-1) for model in two)
    mean = p**0.7 * q**0.3
    expected = mean / mean.sum(-1, keepdim=True)
    assert_close(GeometricMixture(*two, 0.3)(ids).softmax(-1), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_reading_a_text_in_pieces_through_a_cache_gives_the_same_logits(two, ids):
    mixture = GeometricMixture(*two, 0.4)
    cache = KVCache(mixture.config, 4, 9, torch.device("cpu"))
    parts = [mixture(ids[:, a:b], None, cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    assert_close(torch.cat(parts, 1), mixture(ids), rtol=1e-4, atol=1e-5)
    assert cache.lengths.tolist() == [9] * 4 and cache.width == 9


def test_the_halves_of_a_cache_are_its_layers_in_the_same_storage():
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = ModelConfig(vocab_size=37, hidden_size=24, intermediate_size=40, **shape)
    cache = KVCache(config, 3, 5, torch.device("cpu"))
    cache.width, cache.lengths = 2, torch.tensor([1, 2, 2])
    first, second = halves_of(cache)
    first.keys_LBSKE[1, 2, 3] = 1.0
    second.values_LBSKE[0, 1, 4] = 2.0
    assert first.keys_LBSKE.shape[0] == second.keys_LBSKE.shape[0] == 2
    assert cache.keys_LBSKE[1, 2, 3].eq(1).all() and cache.keys_LBSKE.sum() == cache.keys_LBSKE[1, 2, 3].numel()
    assert cache.values_LBSKE[2, 1, 4].eq(2).all() and second.width == 2 and second.lengths.tolist() == [1, 2, 2]


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_full_forwards_of_mixed_logits(two):
    weight = 0.4
    found = generate(GeometricMixture(*two, weight), PROMPTS, SamplingConfig(max_tokens=14, temperature=0.0))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = list(prompt)
        for token in completion.ids:
            logits = [model(torch.tensor([ids]))[0, -1] for model in two]
            assert token == int(((1 - weight) * logits[0] + weight * logits[1]).argmax())
            ids.append(token)
        assert len(completion.ids) == min(14, 16 - len(prompt))  # the context holds 16 tokens
    alone = [generate(model, PROMPTS, SamplingConfig(max_tokens=14, temperature=0.0)) for model in two]
    assert all([c.ids for c in found] != [c.ids for c in other] for other in alone)


@torch.no_grad()
def test_sampled_tokens_carry_the_mixtures_log_probs(two):
    sampling = SamplingConfig(max_tokens=8, temperature=0.7, stop_ids=(3, 7, 11), batch_size=3, microbatch_tokens=6)
    mixture = GeometricMixture(*two, 0.5)
    for prompt, completion in zip(PROMPTS, generate(mixture, PROMPTS, sampling, seed=4), strict=True):
        ids = torch.tensor([list(prompt) + completion.ids])
        logps = (mixture(ids) / 0.7).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logps.gather(-1, torch.tensor(completion.ids)[:, None]).squeeze(-1)
        assert_close(torch.tensor(completion.logps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("weight", "index"), [(0.0, 0), (1.0, 1)])
def test_a_weight_of_0_is_the_policy_and_of_1_the_reference(two, weight, index):
    sampling = SamplingConfig(max_tokens=8)
    found = generate(GeometricMixture(*two, weight), PROMPTS, sampling, seed=1)
    expected = generate(two[index], PROMPTS, sampling, seed=1)
    assert [c.ids for c in found] == [c.ids for c in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert got.logps == pytest.approx(wanted.logps, abs=1e-5)


def test_it_owns_no_weights(two):
    assert list(GeometricMixture(*two, 0.5).parameters()) == []


def test_move_towards_mixes_weights_and_copies_at_1(two):
    policy, reference = map(Policy, two)
    start = copy.deepcopy(reference.state_dict())
    move_towards(reference, policy, 0.0)
    assert_close(reference.state_dict(), start, rtol=0, atol=0)
    move_towards(reference, policy, 0.25)
    assert_close(reference.state_dict(), {n: 0.25 * w + 0.75 * start[n] for n, w in policy.state_dict().items()})
    move_towards(reference, policy, 1.0)
    assert_close(reference.state_dict(), policy.state_dict(), rtol=0, atol=0)
    assert reference.transformer.head_weight is not policy.transformer.head_weight


def test_move_towards_copies_adapters_on_a_base_in_4_bits(make, ids):
    policy = apply_lora(Policy(quantise_linears(make())), LoRAConfig(r=2))
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.normal_()
    move_towards(reference, policy, 1.0)
    assert_close(reference.transformer(ids), policy.transformer(ids), rtol=0, atol=0)
