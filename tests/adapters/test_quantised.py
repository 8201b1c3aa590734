"""Weights in 4 bits: bytes, rounding error, gradients to the input only, adapters that learn on top."""

import copy
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from minirlhf.adapters.lora import LoRAConfig, adapter_view, apply_lora, merge_lora, reference_of
from minirlhf.adapters.quantised import (
    NF4,
    QuantisedLinear,
    dequantise,
    memory_report,
    plain,
    quantise,
    quantise_linears,
)
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.model.transformer import run_block
from minirlhf.pretrained.adapter_files import load_adapter, save_adapter
from minirlhf.runtime.compile import maybe_compile


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear_of(weight, bias=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.clone()
    if bias is not None:
        linear.bias.data = bias.clone()
    return linear


# Quantising and restoring


def test_the_levels_themselves_come_back_exactly_and_two_codes_share_a_byte():
    # a block of 64 numbers: the 16 levels four times, times 2. Codes 0, 1, ..., 15 are the bytes 0x01, 0x23, ...
    weight = 2 * torch.tensor(NF4).repeat(4).view(8, 8)
    codes, scales, ranges = quantise(weight)
    assert codes.tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF] * 4
    assert scales.tolist() == [0] and ranges.view(torch.float32).tolist() == [[2.0, 0.0]]
    assert torch.equal(dequantise(codes, scales, ranges, (8, 8)), weight)


def test_the_nearest_level_is_taken():
    weight = normal(64, 64)
    scaled = weight.view(-1, 64) / dequantised_scales(weight)[:, None]
    nearest = (scaled[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    codes = quantise(weight)[0]
    assert torch.equal(torch.stack((codes // 16, codes % 16), dim=1).view(-1, 64), nearest.to(torch.uint8))


def dequantised_scales(weight):
    codes, scales, ranges = quantise(weight)
    top = torch.full_like(codes, 0xFF)  # level 15 is 1
    return dequantise(top, scales, ranges, weight.shape).view(-1, 64)[:, 0]


def test_scales_are_rounded_by_at_most_half_a_step_of_their_group():
    # 2 groups of 256 scales; the second group's scales are a thousand times smaller
    weight = torch.cat((normal(256, 64), 1e-3 * normal(256, 64, seed=1)))
    largest = weight.abs().amax(1).view(2, 256)
    step = (largest.amax(1) - largest.amin(1)) / 255
    error = (dequantised_scales(weight).view(2, 256) - largest).abs().amax(1)
    assert (error <= 0.501 * step).all()


def test_relative_error_on_normal_weights_is_9_percent():
    weight = 0.02 * normal(512, 512)
    error = (dequantise(*quantise(weight), weight.shape) - weight).norm() / weight.norm()
    assert error.item() == pytest.approx(0.092, abs=0.001)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 64), (64, 257)])
def test_shapes_that_do_not_fill_their_blocks_come_back(shape):
    weight = normal(*shape)
    back = dequantise(*quantise(weight), shape)
    assert (
        back.shape == shape and (back - weight).abs().max() <= 0.16 * weight.abs().max()
    )  # half the widest gap between levels
    assert (weight == weight.clamp(back.min() - 1, back.max() + 1)).all()


def test_zeros_stay_zeros():
    weight = torch.zeros(4, 64)
    assert torch.equal(dequantise(*quantise(weight), (4, 64)), weight)
    weight[1] = 3.0  # now a scale of 0 is the least of a group with larger scales
    assert_close(dequantise(*quantise(weight), (4, 64)), weight)


# The layer


def test_a_number_takes_a_half_plus_a_64th_plus_8_of_16384_bytes():
    # 256 * 256 = 65536 numbers: 32768 bytes of codes + 1024 scales + 4 ranges of 8 bytes = 33824.
    # In fp32 they take 4 * 65536 = 262144 bytes: the fraction is 0.129
    report = memory_report(QuantisedLinear(linear_of(normal(256, 256), normal(256))))
    assert report["quantised_bytes"] == 32768 + 1024 + 4 * 8
    assert report["quantised_share_of_fp32"] == 33824 / 262144 < 0.16
    assert report["frozen_bytes"] == 4 * 256 and report["trained_bytes"] == 0  # the bias


def test_memory_of_a_model_with_adapters(make):
    model = apply_lora(quantise_linears(make()), LoRAConfig(r=2, target_modules=("q_proj",)))
    report = memory_report(Policy(model))
    assert report["trained_bytes"] == 4 * 2 * (2 * 24 + 24 * 2)
    assert report["frozen_bytes"] == 4 * (37 * 24 + 5 * 24)  # embedding and norms
    assert 0 < report["quantised_share_of_fp32"] < 0.16
    assert memory_report(make())["quantised_share_of_fp32"] == 0.0


@pytest.mark.parametrize("bias", [None, normal(48, seed=3)])
def test_forward_and_gradient_are_those_of_the_dequantised_weight(bias):
    layer = QuantisedLinear(linear_of(normal(48, 32), bias))
    x, y = (normal(2, 5, 32, seed=1).requires_grad_() for _ in range(2))
    out, plain = layer(x), F.linear(y, layer.weight, bias)
    assert_close(out, plain)
    grad = normal(2, 5, 48, seed=2)
    out.backward(grad)
    plain.backward(grad)
    assert_close(x.grad, y.grad)
    assert not any(p.requires_grad for p in layer.parameters())


def test_the_backward_pass_saves_the_codes_and_not_the_weight():
    layer, saved = QuantisedLinear(linear_of(normal(128, 128))), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        layer(normal(1, 128).requires_grad_())
    assert sum(saved) == 128 * 128 // 2 + 256 + 8 + 2048  # 2048: the table of levels, the same for all layers


@pytest.mark.parametrize("config", [None, LoRAConfig(r=2), LoRAConfig(r=2, use_dora=True)])
def test_gradients_numerically(config):
    model = nn.Sequential(QuantisedLinear(linear_of(normal(5, 6), normal(5, seed=4)))).double()
    parts = []
    if config:
        adapter = apply_lora(model, config)[0].adapters["default"].double()
        adapter.B.data = normal(5, 2, seed=5, dtype=torch.float64)
        # DoRA's length is a constant to the gradient of A and B, so gradcheck would find other slopes
        parts = [adapter.magnitude] if config.use_dora else [adapter.A, adapter.B]
    x = normal(3, 6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *parts: model(x), (x, *parts))


def test_changing_the_models_dtype_does_not_change_the_weight():
    layer = QuantisedLinear(linear_of(normal(64, 64)))
    before = layer.weight
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        assert torch.equal(layer.to(dtype).weight, before)
        assert layer(normal(2, 64, dtype=dtype)).dtype == dtype


def test_under_autocast_the_inputs_gradient_has_the_inputs_dtype():
    layer, x = QuantisedLinear(linear_of(normal(64, 64))), normal(4, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert_close(x.grad, layer.weight.sum(0).expand(4, 64), atol=0.1, rtol=0.02)


def test_state_is_saved_and_loaded(tmp_path, make, ids):
    model = quantise_linears(make())
    assert "model.layers.0.mlp.up_proj.codes" in model.state_dict()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = quantise_linears(make(seed=1))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(ids), model(ids))
    assert torch.equal(copy.deepcopy(model)(ids), model(ids))


# The model


def test_slices_are_not_quantised_in_place(make):
    in_slices = mock.patch.object(nn.Parameter, "to_local", lambda p: p, create=True)
    needed = "quantise_linears: needed a whole model, got slices.*quantised_slices"
    with in_slices, pytest.raises(InputError, match=needed):
        quantise_linears(make())


def test_patterns_choose_what_is_quantised_and_the_head_is_not(make):
    def quantised(model):
        return sorted(name for name, module in model.named_modules() if isinstance(module, QuantisedLinear))

    assert len(quantised(quantise_linears(make(tie_word_embeddings=False)))) == 14
    model = quantise_linears(make(), ("layers.1.mlp.*",))
    assert quantised(model) == [f"model.layers.1.mlp.{name}_proj" for name in ("down", "gate", "up")]
    first = model.model.layers[1].mlp.up_proj
    assert quantise_linears(model).model.layers[1].mlp.up_proj is first  # quantised once only


def test_lora_before_or_after_quantising_is_the_same(make, ids):
    torch.manual_seed(5)
    after = quantise_linears(apply_lora(make(), LoRAConfig(r=2)))
    torch.manual_seed(5)
    before = apply_lora(quantise_linears(make()), LoRAConfig(r=2))
    assert torch.equal(after(ids), before(ids)) and after.state_dict().keys() == before.state_dict().keys()


def test_without_adapter_it_is_the_quantised_base_and_merged_a_dense_model(make, ids, mask, tmp_path):
    base = quantise_linears(make())
    policy = apply_lora(Policy(quantise_linears(make())), LoRAConfig(r=2))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.endswith(".B"):
                p += 0.1
    assert torch.equal(adapter_view(policy, None).transformer(ids), base(ids))
    assert torch.equal(reference_of(policy).transformer(ids), base(ids))
    assert len(generate(policy.transformer, [[1, 2]], SamplingConfig(max_tokens=4))[0].ids) == 4
    save_adapter(policy, tmp_path)
    loaded = quantise_linears(make())
    load_adapter(loaded, tmp_path)
    before = policy.transformer(ids)
    assert torch.equal(loaded(ids), before)
    merged = merge_lora(policy).transformer
    assert not any(isinstance(module, QuantisedLinear) for module in merged.modules())
    assert_close(merged(ids), before, atol=1e-5 * before.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_weights_have_the_dtype_of_the_other_weights(make, ids, dtype):
    policy = apply_lora(Policy(quantise_linears(make().to(dtype))), LoRAConfig(r=2))
    written = plain(policy)
    assert {p.dtype for p in written.parameters()} == {dtype}
    assert written.transformer(ids).isfinite().all()
    assert any(isinstance(module, QuantisedLinear) for module in policy.modules())


def trained_loss(quantised):
    """Train a base on a rule (next id = 2 * id mod 31), then LoRA on a second rule (3 * id mod 31) -> both losses."""
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    model = Transformer(ModelConfig(**shape, max_position_embeddings=16))

    def learn(factor, steps, lr):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for step in range(steps):
            first = torch.randint(1, 31, (16, 1), generator=torch.Generator().manual_seed(step))
            ids = torch.cat([first * factor**t % 31 for t in range(8)], dim=1)
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    learned = learn(2, 40, 3e-3)
    if quantised:
        quantise_linears(model)
    apply_lora(model, LoRAConfig(r=4, alpha=8.0))
    return learned, learn(3, 40, 5e-3)


def test_a_tiny_run_on_4_bits_ends_within_5_percent_of_the_run_in_fp32():
    (_, plain), (learned, quantised) = trained_loss(False), trained_loss(True)
    assert plain < 2.5 and learned < 1.0  # chance is ln 31 = 3.4
    assert quantised == pytest.approx(plain, rel=0.05)


def adapted_model(four_bits):
    torch.manual_seed(0)
    shape = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 40}
    model = Transformer(ModelConfig(num_attention_heads=4, num_key_value_heads=2, **shape))
    model = apply_lora(quantise_linears(model) if four_bits else model, LoRAConfig(r=2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.normal_(std=0.3)
    return model


def through(layer, x):
    return layer(x)


@pytest.mark.parametrize("four_bits", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_layers_with_adapters_compute_what_eager_ones_do(four_bits):
    block, found = adapted_model(four_bits).model.layers[0], []
    for call in (through, maybe_compile(through, True, backend="aot_eager")):
        for rows in (3, 5):  # the second size is computed by the same code
            x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows), requires_grad=True)
            block.zero_grad()
            y = call(block.mlp.gate_proj, x)
            y.square().sum().backward()
            found.append([y.detach(), x.grad, *(p.grad for p in block.mlp.gate_proj.parameters() if p.requires_grad)])
    assert_close(found[2:], found[:2], rtol=1e-4, atol=1e-4)
    assert len(found[0]) == 4 and all(part.abs().max() > 1e-3 for part in found[0])


@pytest.mark.slow  # tracing takes 20 s
@pytest.mark.parametrize("four_bits", [False, True])
def test_compiled_blocks_with_adapters_compute_what_eager_ones_do(four_bits):
    model, ids, found = adapted_model(four_bits), torch.arange(20)[None], []
    for block in (run_block, maybe_compile(run_block, True, backend="aot_eager")):
        model.model.run_block = block
        model.zero_grad()
        logits = model(ids)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
