"""The last block computes the tokens that are read alone: their hidden states and all gradients stay the same."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, prefix_tree
from minirlhf.model import packing as packing_module
from minirlhf.model.cache import KVCache
from minirlhf.model.config import FULL, SLIDING

SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 48}
KINDS = {
    "llama": {},
    "one layer": {"num_hidden_layers": 1},
    "gpt2": {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True},
    "gemma": {"norm_after": True, "attn_logit_softcapping": 2.0, "embedding_scale": True},
    "window": {"layer_types": (SLIDING, FULL), "sliding_window": 4},
    "fused": {"fused_projections": True, "qk_norm": "head"},
    "experts": {"num_experts": 4, "moe_intermediate_size": 8},
}
LENGTHS = {"ragged": [20, 3, 3, 11, 1, 7], "equal": [5, 5, 5], "one token": [1, 1]}


def transformer_of(**kind):
    torch.manual_seed(0)
    transformer = Transformer(ModelConfig(**SHAPE | kind)).double()
    with torch.no_grad():
        for p in transformer.parameters():
            p += 0.3 * torch.randn_like(p)
    return transformer


def batch_of(lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 23, mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask, ids, 0), mask


def read(trunk, ids, mask, places, *given):
    trunk.zero_grad()
    hidden = trunk(ids, mask, *given).flatten(0, 1)[places]
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)).double()).sum().backward()
    return hidden.detach(), [p.grad for p in trunk.parameters()]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_tokens_that_are_read_and_all_gradients_are_the_same(kind, lengths):
    trunk, (ids, mask) = transformer_of(**kind).model, batch_of(lengths)
    places = mask.flatten().nonzero()[:, 0].flip(0)[::3].contiguous()  # in any order
    assert_close(read(trunk, ids, mask, places, None, places), read(trunk, ids, mask, places), atol=1e-9, rtol=1e-9)


def test_tokens_that_rows_share_are_read_once_for_each_row(monkeypatch):
    """Among them the last token of a row that is the beginning of another."""
    monkeypatch.setattr(packing_module, "SHORT", 0)
    monkeypatch.setattr(packing_module, "LEAST", 2)
    monkeypatch.setattr(prefix_tree, "LEAST", 2)
    trunk, (ids, mask) = transformer_of().model, batch_of([9, 12, 5, 9])
    ids[1, :7] = ids[0, :7]
    ids[2, :5] = ids[0, :5]
    assert packing_module.packing_of(trunk, ids, mask).nodes
    places = torch.tensor([8, 12 + 11, 24 + 4, 36 + 8, 3, 12 + 3])
    assert_close(read(trunk, ids, mask, places, None, places), read(trunk, ids, mask, places), atol=1e-9, rtol=1e-9)


def test_the_last_mlp_computes_no_other_token(monkeypatch):
    trunk, (ids, mask), tokens = transformer_of(num_hidden_layers=3).model, batch_of([9, 4, 1]), []
    for block in trunk.layers:
        block.mlp.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[1]))
    trunk(ids, mask, places=torch.tensor([8, 12]))
    assert tokens == [14, 14, 2]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_a_policy_that_computes_wanted_tokens_alone_has_the_same_gradients(lengths):
    policy, (ids, mask) = Policy(transformer_of(), value_head=True).double(), batch_of(lengths)
    torch.nn.init.normal_(policy.value_head.weight)
    wanted = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) < 0.5)

    def gradients(**options):
        policy.zero_grad()
        out = policy(ids, mask, **options)
        sum(torch.where(wanted, x, 0).square().sum() for x in out).backward()
        return [p.grad for p in policy.parameters()]

    assert_close(gradients(wanted=wanted), gradients(), atol=1e-9, rtol=1e-9)


def test_a_batch_in_which_no_token_is_wanted_has_gradients_of_0():
    policy, (ids, mask) = Policy(transformer_of(), value_head=True).double(), batch_of([5, 2])
    sum(x.sum() for x in policy(ids, mask, wanted=torch.zeros_like(mask))).backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_a_prompt_in_a_cache_reads_its_last_token_alone():
    transformer, (ids, mask) = transformer_of(), batch_of([4, 9, 2])
    caches = [KVCache(transformer.config, 3, 12, "cpu", torch.float64) for _ in range(2)]
    places = torch.tensor([3, 9 + 8, 18 + 1])
    some = transformer.model(ids, mask, caches[0], places).flatten(0, 1)[places]
    assert_close(some, transformer.model(ids, mask, caches[1]).flatten(0, 1)[places])
    tokens = torch.tensor([[1], [2], [3]])
    assert_close(*(transformer(tokens, cache=cache) for cache in caches))


@pytest.mark.parametrize("worth", [0.0, 1.0], ids=["padded", "packed"])
def test_a_reward_model_scores_a_row_of_padding_too(worth, monkeypatch):
    """A process without rows gets one of padding: its score may be anything, but the others stay."""
    monkeypatch.setattr(packing_module, "WORTH", worth)
    model, (ids, mask) = RewardModel(transformer_of()).double(), batch_of([3, 7, 5])
    mask[0] = False
    mask[2] = False
    scores = model(ids, mask)
    assert len(scores) == 3
    assert_close(scores[1:2], model(ids[1:2], mask[1:2]))
