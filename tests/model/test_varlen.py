"""Packed batches of a GPU, tried without one: for torch's varlen kernel, plain attention within each row stands in."""

import contextlib
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import varlen as torch_varlen
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora
from minirlhf.data.batches import pad_sequences
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, row_lengths, varlen
from minirlhf.model import packing as packing_module
from minirlhf.model.config import FULL, SLIDING
from minirlhf.model.packing import packing_of
from minirlhf.model.transformer import Trunk

SHAPE = {
    "vocab_size": 23,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 80,
}
KINDS = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": "learned", "gated_mlp": False, "hidden_act": "gelu_tanh", "mlp_bias": True},
    "window": {
        "layer_types": (SLIDING, FULL),
        "sliding_window": 4,
        "rope_local_theta": 100.0,
        "query_pre_attn_scalar": 20,
    },
    "fused": {"fused_projections": True, "qk_norm": "head"},
    "one key head": {"num_attention_heads": 4, "num_key_value_heads": 1},
}
LENGTHS = {
    "ragged": [20, 3, 3, 3, 11, 1, 7],
    "one token": [1, 9, 1],
    "long": [70, 1, 66, 2],
    "a row of padding": [9, 0, 2],
}
CALLS = []


def stand_in(fault=None):
    """`varlen_attn` of the documented signature; fault: what it does wrong."""

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        CALLS.append(window_size)
        if fault == "raises":
            raise RuntimeError("no such kernel\nat line 3")
        assert cu_seq_q.dtype == torch.int32 and query.dtype == key.dtype == value.dtype
        (left, right), outs = window_size, []
        lengths = cu_seq_q.diff().tolist()
        assert max(lengths) == max_q == max_k and sum(lengths) == len(query) and min(lengths) > 0 and right == 0
        for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
            distance = torch.arange(len(q))[:, None] - torch.arange(len(q))
            visible = (distance >= (-1 if fault == "acausal" else 0)) & ((distance <= left) | (left < 0))
            if fault == "window" and left >= 0:
                visible |= distance == left + 1
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            options = {"scale": 0.3 if fault == "scale" else scale, "enable_gqa": enable_gqa}
            outs.append(F.scaled_dot_product_attention(q, k, v, visible, **options)[0].transpose(0, 1))
        out = torch.cat(outs)
        if fault == "gradient":
            return out.detach() + 0.9 * (out - out.detach())
        return out * torch.nan if fault == "nan" else out

    return varlen_attn


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """The CPU passes for a GPU whose kernel takes every dtype."""
    monkeypatch.setattr(packing_module, "GPU", "cpu")
    monkeypatch.setattr(torch_varlen, "varlen_attn", stand_in())
    for dtype, within in {torch.float32: 1e-5, torch.float64: 1e-9}.items():
        monkeypatch.setitem(varlen.TOLERANCE, dtype, within)
    varlen.supported.cache_clear()
    CALLS.clear()
    yield
    varlen.supported.cache_clear()


def policy_of(dtype=torch.float64, **kind):
    torch.manual_seed(0)
    policy = Policy(Transformer(ModelConfig(**SHAPE | kind)).to(dtype), value_head=True)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn_like(p)
    return policy


def batch_of(lengths, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 23, (n,), generator=generator).tolist() for n in lengths]
    return pad_sequences(rows, [[] for _ in rows], 0, device)[:2]


def numbers_and_gradients(model, ids, mask):
    model.zero_grad()
    outputs, generator = model(ids, mask), torch.Generator().manual_seed(2)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs).backward()
    return [x.detach() for x in outputs], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def compare(model, ids, mask, monkeypatch, within=1e-9):
    packed = numbers_and_gradients(model, ids, mask)
    assert len(CALLS) > 2  # the probe, and two layers
    CALLS.clear()
    monkeypatch.setattr(packing_module, "WORTH", 0.0)
    padded = numbers_and_gradients(model, ids, mask)
    assert not CALLS and len(packed[1]) == len(padded[1]) > 0
    for ours, theirs in zip(packed, padded, strict=True):
        assert_close(ours, theirs, rtol=within, atol=within)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_entropy_values_and_gradients(kind, lengths, monkeypatch):
    compare(policy_of(**KINDS[kind]), *batch_of(LENGTHS[lengths]), monkeypatch)


def test_in_single_precision(monkeypatch):
    torch.manual_seed(0)
    policy = Policy(Transformer(ModelConfig(**SHAPE)), value_head=True)
    compare(policy, *batch_of(LENGTHS["ragged"]), monkeypatch, within=1e-5)


@torch.inference_mode()  # else attention on a CPU is computed in fp32
def test_under_autocast(monkeypatch):
    for dtype in (torch.float32, torch.float64):
        monkeypatch.delitem(varlen.TOLERANCE, dtype)
    policy, (ids, mask) = policy_of(torch.float32), batch_of(LENGTHS["ragged"])
    with torch.autocast("cpu", torch.bfloat16):
        packed = policy(ids, mask).logps
        assert len(CALLS) == 1 + 2
        # LayerNorm of queries and keys gives fp32 on a GPU, and the kernel takes no mix
        q, v = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8).bfloat16()
        bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
        assert varlen.attend_varlen(q, q, v, bounds, 5, None, None).dtype == torch.bfloat16
    CALLS.clear()
    plain = policy(ids, mask).logps  # in fp32, so padded
    assert not CALLS and 1e-4 < (packed - plain).abs().mean() < 0.1


def test_numbers_of_another_dtype_than_the_embedding_attend_row_by_row(monkeypatch):
    policy, (ids, mask) = policy_of(), batch_of(LENGTHS["long"])
    with torch.no_grad():
        expected = policy(ids, mask).logps
        packing = packing_of(policy.transformer.model, ids, mask)
        monkeypatch.setattr(packing_module, "packing_of", lambda *_: packing)
        monkeypatch.delitem(varlen.TOLERANCE, torch.float64)
        CALLS.clear()
        assert_close(policy(ids, mask).logps, expected, rtol=1e-9, atol=1e-9)
    assert not CALLS


def test_with_checkpoints_and_adapters(monkeypatch):
    policy = policy_of()
    apply_lora(policy.transformer, LoRAConfig(r=2))
    policy.double()
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn_like(p)
    policy.transformer.model.gradient_checkpointing = 1
    compare(policy, *batch_of(LENGTHS["ragged"]), monkeypatch)


@pytest.mark.parametrize("lengths", ["ragged", "one token", "long"])
def test_a_reward_model_reads_its_last_tokens(lengths, monkeypatch):
    model = RewardModel(policy_of().transformer).double()
    compare(model, *batch_of(LENGTHS[lengths]), monkeypatch)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_the_places_are_those_of_the_mask(lengths):
    ids, mask = batch_of(lengths)
    packing = packing_of(Trunk(ModelConfig(**SHAPE)), ids, mask)
    if packing is None:
        assert not mask.any() or mask.float().mean() > packing_module.WORTH
        return
    assert torch.equal(packing.places, mask.flatten().nonzero()[:, 0])
    assert packing.bounds.diff().tolist() == [n for n in lengths if n] and packing.bounds[0] == 0
    assert torch.equal(packing.unpack(packing.pack(ids)), ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, varlen.WINDOW])
def test_the_probe_takes_a_right_kernel(dtype, window):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for heads, scale in {(4, 2, 8): None, (2, 2, 64): 0.5}.items():
            assert varlen.supported(torch.device("cpu"), dtype, heads, window, scale)


@pytest.mark.parametrize("fault", ["scale", "acausal", "window", "gradient", "nan", "raises"])
def test_the_probe_refuses_a_wrong_kernel_with_one_warning(fault, monkeypatch):
    monkeypatch.setattr(torch_varlen, "varlen_attn", stand_in(fault))
    policy, (ids, mask) = policy_of(torch.bfloat16, **KINDS["window"]), batch_of(LENGTHS["ragged"])
    with pytest.warns(UserWarning, match="no such kernel$" if fault == "raises" else "differ") as caught:
        assert packing_of(policy.transformer.model, ids, mask) is None
        assert packing_of(policy.transformer.model, ids, mask) is None
    assert len(caught) == 1


def test_the_probe_works_in_inference_mode_and_draws_no_random_number():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.inference_mode():
        assert varlen.supported(torch.device("cpu"), torch.float32, (4, 2, 8), None, None)
    assert torch.equal(torch.rand(1), expected)


def test_what_is_not_packed(monkeypatch):
    (ids, mask), trunk = batch_of([9, 1]), policy_of().transformer.model
    assert packing_of(trunk, ids, mask) is not None
    assert packing_of(trunk, ids, torch.ones_like(mask)) is None
    assert packing_of(trunk, ids, torch.zeros_like(mask)) is None
    for kind in ({"attn_logit_softcapping": 2.0}, {"num_experts": 2}):
        assert packing_of(policy_of(**kind).transformer.model, ids, mask) is None
    monkeypatch.delitem(varlen.TOLERANCE, torch.float64)
    varlen.supported.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packing_of(trunk, ids, mask) is None  # the kernel takes no such numbers: known, so no warning


def test_training_reads_nothing_from_the_device(monkeypatch):
    """Meta tensors have no numbers to read. Here the kernel's own rules for shapes stand in for it."""
    monkeypatch.undo()
    monkeypatch.setattr(packing_module, "GPU", "meta")
    monkeypatch.setattr(packing_module, "supported", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: contextlib.nullcontext())
    monkeypatch.setitem(varlen.TOLERANCE, torch.float32, 1e-5)
    kernel = torch_varlen.varlen_attn
    monkeypatch.setattr(
        torch_varlen, "varlen_attn", lambda *args, **options: CALLS.append(1) or kernel(*args, **options)
    )
    for kind in KINDS.values():
        CALLS.clear()
        transformer = Transformer(ModelConfig(**SHAPE | kind)).to("meta")
        ids, mask = batch_of(LENGTHS["ragged"], "meta")
        tokens = set()
        transformer.model.layers[0].mlp.register_forward_hook(lambda _, x, out, seen=tokens: seen.add(x[0].shape[:-1]))
        transformer(ids, mask).sum().backward()
        assert all(p.grad is not None for p in transformer.parameters())
        assert len(CALLS) == len(transformer.model.layers) and tokens == {(1, sum(LENGTHS["ragged"]))}
        RewardModel(transformer).to("meta")(ids, mask).sum().backward()


def test_lengths_are_noted_where_rows_become_tensors_and_read_where_a_mask_changed():
    _, mask = batch_of([4, 0, 2], "meta")
    assert row_lengths.lengths_of(mask) == (4, 0, 2)
    with pytest.raises(RuntimeError):
        row_lengths.lengths_of(mask[:2])  # cut: it must be read
    mask[0] = False
    with pytest.raises(RuntimeError):
        row_lengths.lengths_of(mask)
    with torch.inference_mode():
        _, mask = batch_of([4, 0, 2], "meta")
    with pytest.raises(RuntimeError):
        row_lengths.lengths_of(mask)
    assert row_lengths.lengths_of(batch_of([4, 0, 2])[1]) == (4, 0, 2)
