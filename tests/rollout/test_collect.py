"""Collecting: the rollout of a tiny policy holds the numbers of the sampled tokens, 0 elsewhere, and no gradient."""

import torch
from torch.testing import assert_close

from minirlhf.data import Batches, encode_rows
from minirlhf.generation import SamplingConfig
from minirlhf.losses import token_logps
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.rollout import collect
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
