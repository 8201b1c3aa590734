"""Short rows that share their beginning, and queries that are read alone: the numbers of padded rows, all gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora
from minirlhf.data.batches import pad_sequences
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, short_rows
from minirlhf.model import packing as packing_module
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.packing import packing_of

SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 48}
KINDS = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True},
    "window": {"layer_types": (FULL, SLIDING), "sliding_window": 4, "rope_local_theta": 100.0},
    "fused": {"fused_projections": True, "qk_norm": "head", "attention_bias": True},
    "scaled": {"qk_norm": "width", "query_pre_attn_scalar": 11.0, "num_key_value_heads": 4},
    "capped": {"attn_logit_softcapping": 2.0},
}
PIECES = [[1], [2, 3], [4, 5, 6, 7, 8], [9] * 7, [10, 11, 12]]
PAIRS = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7], [8, 9, 10], [8, 9, 11, 12, 13, 14, 15, 16], [1, 2, 3, 4, 5], [17]]


def policy_of(dtype=torch.float64, **kind):
    torch.manual_seed(0)
    policy = Policy(Transformer(ModelConfig(**SHAPE | kind)), value_head=True).to(dtype)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn_like(p)
    return policy


def batch_of(rows):
    batch = pad_sequences(rows, [[] for _ in rows], 0)
    return batch.input_ids, batch.attention_mask


def numbers_and_gradients(model, *inputs, **options):
    """The wanted numbers, weighted at random, and the gradient of every weight."""
    model.zero_grad()
    outputs = model(*inputs, **options)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else [x for x in outputs if x is not None]
    if "wanted" in options:
        outputs = [torch.where(options["wanted"], x, 0) for x in outputs]
    generator = torch.Generator().manual_seed(2)
    sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs).backward()
    return [x.detach() for x in outputs], [p.grad.clone() for p in model.parameters()]


def compare(model, *inputs, within=1e-9, **options):
    short = numbers_and_gradients(model, *inputs, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_module, "packing_of", lambda *_: None)
        padded = numbers_and_gradients(model, *inputs, **options)
    for ours, theirs in zip(short, padded, strict=True):
        assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(st.data())
def test_any_rows_and_any_wanted_tokens(kind, data):
    """Rows of pieces: equal rows, beginnings of others, strangers, rows without tokens."""
    pieces = st.lists(st.sampled_from(PIECES), max_size=4)
    rows = [sum(parts, []) for parts in data.draw(st.lists(pieces, min_size=1, max_size=6))]
    ids, mask = batch_of([*rows, [13] * 19])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    wanted = mask & (torch.rand(mask.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])))
    wanted[:, 0] = False
    policy = policy_of(**KINDS[kind])
    policy.transformer.model.gradient_checkpointing = data.draw(st.integers(0, 2))
    within = 3e-6 if kind == "capped" else 1e-9  # its softmax is computed in fp32
    compare(policy, ids, mask, wanted=wanted, within=within)


def test_a_reward_model_of_pairs_in_fp32():
    policy = policy_of(torch.float32)
    compare(RewardModel(policy.transformer), *batch_of(PAIRS), within=1e-5)


def test_each_token_enters_a_product_once_and_the_last_queries_are_those_that_are_read():
    model, tokens = RewardModel(policy_of().transformer), {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, out, name=name: tokens.update({name: inputs[0].shape[1]}))
    model(*batch_of(PAIRS))
    shared = 4 + 5 + 2
    for name, count in tokens.items():
        reads = name.startswith("1.") and not name.endswith(("k_proj", "v_proj"))
        assert count == (len(PAIRS) if reads else sum(map(len, PAIRS)) - shared), name
    assert len(tokens) == 14


def test_what_is_not_shared():
    def shares(model, rows):
        packing = packing_of(model, *batch_of(rows))
        return packing is not None and packing.index is not None

    trunk = policy_of().transformer.model
    assert shares(trunk, PAIRS)
    assert not shares(trunk, [[n] * (n + 2) for n in range(6)])
    assert not shares(trunk, [[1, 2, *range(3, 20)], [1, *range(4, 22)]])  # one token of 37
    for dropout in (0.0, 0.1):
        policy = policy_of()
        apply_lora(policy.transformer, LoRAConfig(r=2, dropout=dropout))
        assert shares(policy.transformer.model, PAIRS) == (dropout == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_is_in_fp32_under_autocast_and_in_half_precision(dtype, monkeypatch):
    policy, types, forward = policy_of(dtype), set(), short_rows.ShortAttention.forward
    watched = staticmethod(lambda ctx, q, *more: types.add(q.dtype) or forward(ctx, q, *more))
    monkeypatch.setattr(short_rows.ShortAttention, "forward", watched)
    ids, mask = batch_of(PAIRS)
    with torch.autocast("cpu", torch.bfloat16):
        numbers, gradients = numbers_and_gradients(policy, ids, mask, wanted=mask)
        monkeypatch.setattr(packing_module, "packing_of", lambda *_: None)
        padded, expected = numbers_and_gradients(policy, ids, mask, wanted=mask)
    assert types == {torch.float32}
    for ours, theirs in zip([*numbers, *gradients], [*padded, *expected], strict=True):
        assert ours.dtype == theirs.dtype and (ours - theirs).norm() < 0.05 * theirs.norm() + 1e-3
