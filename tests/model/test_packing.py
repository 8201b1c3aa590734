"""Batches without their padding give the numbers and the gradients of padded batches, for every kind of model."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.data.batches import pad_sequences
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, ValueModel
from minirlhf.model import packing as packing_module
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.packing import packing_of
from minirlhf.model.transformer import Trunk

SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 48}
KINDS = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True},
    "gemma": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "embedding_scale": True},
    "window": {"layer_types": (SLIDING, FULL), "sliding_window": 4, "rope_local_theta": 100.0},
    "capped window": {"layer_types": (SLIDING, SLIDING), "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
}
LENGTHS = {
    "ragged": [20, 3, 3, 3, 11, 1, 7],
    "one token": [1, 9, 1],
    "one row": [5],
    "long and short": [30, 1, 1, 1],
}


@pytest.fixture(params=[0, 64], ids=["row by row", "padded again"], autouse=True)
def ways_to_attend(request, monkeypatch):
    monkeypatch.setattr(packing_module, "SHORT", request.param)


def policy_of(values=True, **kind):
    torch.manual_seed(0)
    policy = Policy(Transformer(ModelConfig(**SHAPE | kind)).double(), value_head=values)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn_like(p)
    return policy


def batch_of(lengths, width=None):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 23, (n,), generator=generator).tolist() for n in lengths]
    batch = pad_sequences(rows, [[] for _ in rows], 0)
    more = (width or max(lengths)) - max(lengths)
    return [torch.nn.functional.pad(x, (0, more)) for x in (batch.input_ids, batch.attention_mask)]


def numbers_and_gradients(model, ids, mask, readout):
    model.zero_grad()
    outputs = readout(model(ids, mask))
    generator = torch.Generator().manual_seed(2)
    sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs).backward()
    return [x.detach() for x in outputs], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def compare(model, ids, mask, monkeypatch, readout=lambda x: x, within=1e-9):
    assert packing_of(Trunk(ModelConfig(**SHAPE)), ids, mask) is not None
    packed = numbers_and_gradients(model, ids, mask, readout)
    monkeypatch.setattr(packing_module, "WORTH", 0.0)
    assert packing_of(Trunk(ModelConfig(**SHAPE)), ids, mask) is None
    padded = numbers_and_gradients(model, ids, mask, readout)
    assert len(packed[1]) == len(padded[1]) > 10
    for ours, theirs in zip(packed, padded, strict=True):
        assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_entropy_and_values(kind, lengths, monkeypatch):
    ids, mask = batch_of(LENGTHS[lengths], width=max(LENGTHS[lengths]) + 2)
    capped = "attn_logit_softcapping" in KINDS[kind]  # its softmax is computed in fp32
    compare(policy_of(**KINDS[kind]), ids, mask, monkeypatch, within=3e-6 if capped else 1e-9)


def test_with_gradient_checkpointing(monkeypatch):
    policy = policy_of()
    policy.transformer.model.gradient_checkpointing = True
    compare(policy, *batch_of(LENGTHS["ragged"]), monkeypatch)


@pytest.mark.parametrize("model_class", [RewardModel, ValueModel])
def test_reward_and_value_models(model_class, monkeypatch):
    model = model_class(policy_of(values=False).transformer).double()
    compare(model, *batch_of(LENGTHS["ragged"]), monkeypatch, readout=lambda x: (x,))


def test_a_head_reads_the_same_hidden_states(monkeypatch):
    """Hidden states at padding are 0 or junk, so a head must mask them."""
    ids, mask = batch_of(LENGTHS["ragged"])
    policy = policy_of(values=False)
    readout = {"head": lambda hidden, weight, softcap: (torch.where(mask[..., None], hidden @ weight.T, 0),)}
    compare(lambda_model(policy, readout), ids, mask, monkeypatch)


def lambda_model(policy, options):
    class WithHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy = policy

        def forward(self, ids, mask):
            return self.policy(ids, mask, **options)

    return WithHead()


def test_no_padding_enters_a_product(monkeypatch):
    ids, mask = batch_of(LENGTHS["ragged"], width=40)
    policy, tokens = policy_of(values=False), set()
    for module in policy.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, out: tokens.add(inputs[0].shape[:-1].numel()))
    policy(ids, mask)
    assert tokens == {sum(LENGTHS["ragged"])}


def test_what_is_not_packed():
    trunk, (ids, mask) = Trunk(ModelConfig(**SHAPE)), batch_of([9, 1])
    assert packing_of(trunk, ids, mask) is not None
    assert packing_of(trunk, ids, None) is None
    assert packing_of(trunk, ids, torch.ones_like(mask)) is None
    assert packing_of(Trunk(ModelConfig(**SHAPE, num_experts=2)), ids, mask) is None
    assert packing_of(trunk, ids, torch.zeros_like(mask)) is None


def test_a_row_of_padding_alone_changes_nothing(monkeypatch):
    """Another process may need a forward of such a row."""
    ids, mask = batch_of([9, 4, 2])
    mask[1] = False
    compare(policy_of(), ids, mask, monkeypatch)
