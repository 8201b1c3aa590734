"""Rows that share their beginning give the numbers and the gradients of rows that are computed one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora
from minirlhf.data.batches import pad_sequences
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer
from minirlhf.model import packing as packing_module
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.packing import packing_of
from minirlhf.model.prefix_tree import LEAST, TreeAttention, common_beginnings, prefix_tree

SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 300}
GPT2 = {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True}
KINDS = {
    "llama": {},
    "gpt2": GPT2,
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "scaled": {"query_pre_attn_scalar": 11.0, "final_logit_softcapping": 3.0},
    "wide window": {"layer_types": (SLIDING, FULL), "sliding_window": 300, "rope_local_theta": 100.0},
}


def words(count, seed):
    return torch.randint(1, 23, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT, SECOND, SYSTEM = words(70, 1), words(90, 2), words(66, 3)
BATCHES = {
    "a group": [PROMPT + words(n, 10 + n) for n in (5, 9, 1, 9, 33)],
    "two groups and a stranger": [*(p + words(n, n) for n in (8, 3, 6) for p in (PROMPT, SECOND)), words(80, 4)],
    "a pair": [PROMPT + words(30, 5), PROMPT + words(12, 6)],
    "turns": [SYSTEM + PROMPT + words(4, 7), SYSTEM + PROMPT + words(9, 8), SYSTEM + SECOND, SYSTEM + SECOND + [1]],
    "equal rows": [PROMPT, PROMPT, PROMPT + words(3, 9), PROMPT],
    "one prompt is the beginning of another": [PROMPT, PROMPT + SECOND, PROMPT + SECOND + [2], PROMPT[:3], PROMPT[:1]],
}


def policy_of(values=True, **kind):
    torch.manual_seed(0)
    policy = Policy(Transformer(ModelConfig(**SHAPE | kind)).double(), value_head=values)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn_like(p)
    return policy


def batch_of(rows):
    batch = pad_sequences(rows, [[] for _ in rows], 0)
    return batch.input_ids, batch.attention_mask


def shares(model, ids, mask):
    packing = packing_of(model, ids, mask)
    return bool(packing and packing.nodes)


def numbers_and_gradients(model, ids, mask, seed=2):
    model.zero_grad()
    outputs = [x for x in model(ids, mask) if x is not None]
    outputs = [torch.where(mask if x.dim() == 2 else mask[:, 0], x, 0) for x in outputs]
    generator = torch.Generator().manual_seed(seed)
    sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs).backward()
    return [x.detach() for x in outputs], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def compare(model, ids, mask, monkeypatch):
    shared = numbers_and_gradients(model, ids, mask)
    with monkeypatch.context() as patch:
        patch.setattr(packing_module, "LEAST", 10**9)
        patch.setattr(packing_module, "WORTH", 0.0)
        padded = numbers_and_gradients(model, ids, mask)
    assert len(shared[1]) == len(padded[1]) > 10
    for ours, theirs in zip(shared, padded, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_entropy_and_values(kind, name, monkeypatch):
    policy, (ids, mask) = policy_of(**KINDS[kind]), batch_of(BATCHES[name])
    assert shares(policy.transformer.model, ids, mask)
    compare(policy, ids, mask, monkeypatch)


def test_with_gradient_checkpointing(monkeypatch):
    policy = policy_of()
    policy.transformer.model.gradient_checkpointing = True
    compare(policy, *batch_of(BATCHES["turns"]), monkeypatch)


def test_a_reward_model(monkeypatch):
    model = RewardModel(policy_of(values=False).transformer).double()

    class AsTuple(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return (self.model(ids, mask),)

    compare(AsTuple(), *batch_of(BATCHES["a pair"]), monkeypatch)


@settings(max_examples=12)
@given(st.data())
def test_any_rows(data):
    """Pieces of a few texts, put together at random: any tree, lengths of 1, equal rows, rows without tokens."""
    pieces = st.lists(st.sampled_from([words(n, n) for n in (1, 2, 30, 40, 65)]), max_size=4)
    rows = [sum(parts, []) for parts in data.draw(st.lists(pieces, min_size=1, max_size=7))]
    ids, mask = batch_of([*rows, words(70, 99)])
    policy = policy_of(values=False, num_hidden_layers=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare(policy, ids, mask, monkeypatch)


def test_each_token_of_the_tree_enters_a_product_once():
    rows = BATCHES["a group"]
    policy, tokens = policy_of(values=False), set()
    for module in policy.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, out: tokens.add(inputs[0].shape[:-1].numel()))
    policy(*batch_of(rows))
    assert tokens == {len(PROMPT) + sum(len(row) - len(PROMPT) for row in rows)}


def test_the_tree_of_rows_by_hand():
    """90 shared tokens of three rows, 70 more of two of them; 20 shared tokens alone would not be worth a node."""
    a, b = words(90, 1), words(70, 2)
    rows = [a + b + [1], a + [3] * 5, a + b + [2, 2], [9] * 20, [9] * 20 + [1]]
    order, common = common_beginnings(*batch_of(rows))
    assert sorted(order) == [0, 1, 2, 3, 4]
    nodes, paths = prefix_tree(order, common, [len(row) for row in rows])
    spans = [[nodes[n].columns for n in path] for path in paths]
    assert spans == [
        [(0, 90), (90, 160), (160, 161)],
        [(0, 90), (90, 95)],
        [(0, 90), (90, 160), (160, 162)],
        [(0, 20)],
        [(0, 21)],
    ]
    assert sum(node.stop - node.start for node in nodes) == 90 + 70 + 1 + 2 + 5 + 20 + 21
    for path in paths:  # the descendants of a node stand behind it
        for above, below in zip(path, path[1:], strict=False):
            assert nodes[above].stop <= nodes[below].start <= nodes[below].end <= nodes[above].end


def test_what_is_not_shared():
    ids, mask = batch_of(BATCHES["a group"])
    trunk = policy_of().transformer.model
    assert shares(trunk, ids, mask)
    assert not shares(trunk, ids[:1], mask[:1])
    assert not shares(trunk, *batch_of([PROMPT[: LEAST - 1] + [n] * 20 for n in (1, 2)]))  # 63 tokens saved
    assert shares(trunk, *batch_of([PROMPT[:LEAST] + [n] * 20 for n in (1, 2)]))
    for kind in ({"attn_logit_softcapping": 2.0}, {"layer_types": (SLIDING, FULL), "sliding_window": 50}):
        assert not shares(policy_of(**kind).transformer.model, ids, mask)


def test_dropout_is_drawn_for_each_row():
    ids, mask = batch_of(BATCHES["a group"])
    for dropout in (0.0, 0.1):
        policy = policy_of(values=False)
        apply_lora(policy.transformer, LoRAConfig(r=2, dropout=dropout))
        trunk = policy.transformer.model
        assert shares(trunk, ids, mask) == (dropout == 0)
        with torch.no_grad():  # no dropout then
            assert shares(trunk, ids, mask)
        assert shares(trunk.eval(), ids, mask)


def test_in_bf16_attention_is_in_fp32_as_without_a_tree_but_not_in_sampling(monkeypatch):
    ids, mask = batch_of(BATCHES["turns"])
    policy, types, forward = policy_of().to(torch.bfloat16), [], TreeAttention.forward
    monkeypatch.setattr(TreeAttention, "forward", lambda ctx, q, *more: types.append(q.dtype) or forward(ctx, q, *more))
    policy(ids, mask)
    assert {*types} == {torch.float32}
    types.clear()
    with torch.inference_mode():
        policy(ids, mask)
    assert {*types} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    ids, mask = batch_of(BATCHES["turns"])
    policy = policy_of()
    exact = torch.where(mask, policy(ids, mask).logps, 0)
    half = torch.where(mask, policy.to(dtype)(ids, mask).logps, 0)
    assert half.dtype == torch.float32 and (half - exact).abs().max() < 0.1 * exact.abs().max()
