"""Collecting: the rollout of a tiny policy holds the numbers of the sampled tokens, 0 elsewhere, and no gradient."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.data import Batches, encode_rows
from minirlhf.generation import SamplingConfig
from minirlhf.losses import token_logps
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.rollout import collect
from minirlhf.rollout.groups import with_groups
from minirlhf.rollout.statistics import describe
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["the lamp is good. the tent is bad."] * 8, 280)
ROWS = encode_rows(TOKENIZER, [{"prompt": p} for p in ("the lamp", "the tent is", "", "bad")], (), context=32).rows
PER_TOKEN = ("logps", "ref_logps", "values")


def policy_of(seed, loud, value_head=False):
    torch.manual_seed(seed)
    config = ModelConfig(TOKENIZER.vocab_size, 24, intermediate_size=32, max_position_embeddings=32)
    return loud(Policy(Transformer(config), value_head=value_head), seed)


def test_a_rollout_holds_the_numbers_of_sampled_tokens_without_gradient(loud):
    policy, reference = policy_of(0, loud, value_head=True), policy_of(1, loud)
    batch = Batches(ROWS, batch_size=4, steps=1, seed=0, stream="x")[0]
    sampling = SamplingConfig(max_tokens=6, temperature=0.7, stop_ids=TOKENIZER.eos_ids)
    length = lambda prompts, completions, rows: [float(len(text)) for text in completions]  # noqa: E731
    rollout = collect(policy, reference, None, length, TOKENIZER, batch, sampling, seed=3)

    mask = rollout.completion_mask
    assert mask.any(-1).all() and not mask.all()
    for name in PER_TOKEN:
        assert not getattr(rollout, name).requires_grad and (getattr(rollout, name)[~mask] == 0).all(), name
    logits = reference.transformer(rollout.input_ids, rollout.attention_mask).detach()
    assert_close(rollout.ref_logps[mask], token_logps(logits, rollout.input_ids, 0.7)[mask], rtol=1e-4, atol=1e-5)
    values = policy(rollout.input_ids, rollout.attention_mask).values.detach()
    assert_close(rollout.values[mask], values[mask], rtol=1e-4, atol=1e-5)
    assert rollout.scores.tolist() == [float(len(text)) for text in rollout.completions]


def test_without_reference_and_values_the_numbers_are_0(loud):
    batch = Batches(ROWS, batch_size=4, steps=1, seed=0, stream="x")[0]
    reward = lambda prompts, completions, rows: [1.0] * 4  # noqa: E731
    rollout = collect(policy_of(0, loud), None, None, reward, TOKENIZER, batch, SamplingConfig(max_tokens=6), seed=3)
    assert rollout.ref_logps.abs().sum() == rollout.values.abs().sum() == 0


def test_in_bf16_the_trainer_reads_the_log_probs_again_and_reports_the_gap(loud):
    policy = policy_of(0, loud)
    batch = Batches(ROWS, batch_size=4, steps=1, seed=0, stream="x")[0]
    sampling = SamplingConfig(max_tokens=6, temperature=0.7, stop_ids=TOKENIZER.eos_ids)
    reward = lambda prompts, completions, rows: [1.0] * 4  # noqa: E731
    parts = policy, policy_of(1, loud), None, reward, TOKENIZER, batch, sampling
    in_fp32 = collect(*parts, seed=3)
    assert in_fp32.sampler_logps is None and "sampler_gap" not in describe(in_fp32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        rollout = collect(*parts, seed=3)
        options = {"wanted": rollout.completion_mask, "temperature": 0.7}
        expected = policy(rollout.input_ids, rollout.attention_mask, **options).logps.detach()  # as in training
    mask = rollout.completion_mask
    assert_close(rollout.logps, expected)
    assert (rollout.sampler_logps[~mask] == 0).all() and not torch.equal(rollout.sampler_logps, rollout.logps)
    gap = (rollout.logps - rollout.sampler_logps).abs()[mask].mean().item()
    assert describe(rollout)["sampler_gap"] == pytest.approx(gap) and 0 < gap < 0.1
    assert rollout.select([1]).sampler_logps.shape == rollout.select([1]).logps.shape
    joined = with_groups(rollout, [2], rollout.select([0]), 1)
    assert_close(joined.sampler_logps[2], rollout.sampler_logps[0])
    assert with_groups(in_fp32, [2], in_fp32.select([0]), 1).sampler_logps is None
