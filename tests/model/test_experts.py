"""Experts: each token gets the weighted sum of its chosen experts, whatever the other tokens chose."""

import copy
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.losses import load_balancing_loss
from minirlhf.model import (
    KVCache,
    LoRAConfig,
    ModelConfig,
    Transformer,
    apply_lora,
    load_pretrained,
    merge_lora,
    quantise_linears,
    recorded_routing,
    save_pretrained,
)
from minirlhf.model.experts import Experts
from minirlhf.pretrained.config_json import config_from

MOE = {"model_type": "qwen3_moe", "qk_norm": "head", "num_experts": 5, "moe_intermediate_size": 12}


@pytest.fixture
def mixture(make):
    """mixture(**changes): a transformer of two layers with five experts each, two per token."""
    return lambda **changes: make(**MOE | changes)


def scaling(*factors):
    """Experts that multiply by a constant each."""
    experts = [nn.Linear(2, 2, bias=False) for _ in factors]
    for expert, factor in zip(experts, factors, strict=True):
        expert.weight = nn.Parameter(factor * torch.eye(2))
    return experts


def refuses(text):
    return pytest.raises(InputError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("k", "normalises", "factors"), [(1, True, [2, -1]), (1, False, [1.5, -0.75]), (2, True, [1.25, -0.25])]
)
def test_two_experts_by_hand(k, normalises, factors):
    # logits x0 ln 3 and 0: the token (1, 0) has weights 3/4 and 1/4, the token (-1, 2) 1/4 and 3/4. Experts: 2x, -x.
    # k = 1: 2x and -x, times 3/4 if not normalised. k = 2: 2 * 3/4 - 1/4 = 5/4 and 2 * 1/4 - 3/4 = -1/4.
    shape = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = ModelConfig(num_experts=2, num_experts_per_tok=k, norm_topk_prob=normalises, **shape)
    layer, x = Experts(config, scaling(2, -1)), torch.tensor([[[1.0, 0.0], [-1.0, 2.0]]])
    layer.gate.weight = nn.Parameter(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]))
    assert_close(layer(x), x * torch.tensor(factors, dtype=torch.float32)[:, None])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_is_the_sum_over_all_experts_weighted_by_the_routing(mixture, k):
    layer = mixture(num_experts_per_tok=k).model.layers[0].mlp.double()
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i, j in [(i, j) for i in range(3) for j in range(7)]:
        probs = torch.tensor([(row @ x[i, j]).exp().item() for row in layer.gate.weight], dtype=torch.float64)
        best = sorted(range(5), key=lambda e, probs=probs: -probs[e])[:k]
        for e in best:
            expected[i, j] += probs[e] / probs[best].sum() * layer.experts[e](x[i, j])
    assert_close(layer(x), expected)


def test_no_token_is_dropped_if_all_choose_the_same_expert(mixture):
    layer = mixture(num_experts_per_tok=1).model.layers[0].mlp
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([0.0, 0, 0, 1, 0])[:, None].expand(5, 24))
    x = torch.rand(2, 500, 24)  # positive, so expert 3 has the largest logit
    assert_close(layer(x), layer.experts[3](x))


def test_gradients_are_those_of_the_function(mixture):
    layer = mixture(hidden_size=4, num_attention_heads=2, moe_intermediate_size=3).model.layers[0].mlp.double()
    names, weights = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def function(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *weights))


def test_an_expert_that_no_token_chose_is_not_run_in_sampling_and_has_gradient_0_in_training(mixture):
    layer, calls = mixture().model.layers[0].mlp, []
    for e, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda *_, e=e: calls.append(e))
    x = torch.randn(1, 1, 24)
    with torch.no_grad():
        layer(x)
    assert len(calls) == 2
    layer(x).sum().backward()
    moved = [e for e, expert in enumerate(layer.experts) if expert.up_proj.weight.grad.any()]
    assert moved == sorted(calls[:2])  # every other expert has a gradient of zeros


def test_a_layer_may_have_an_mlp_instead_of_experts(mixture):
    layers = mixture(mlp_only_layers=(1,)).model.layers
    assert isinstance(layers[0].mlp, Experts)
    assert layers[0].mlp.experts[4].up_proj.weight.shape == (12, 24)
    assert layers[1].mlp.up_proj.weight.shape == (40, 24)


def test_down_projections_start_smaller_than_the_router():
    torch.manual_seed(0)
    layer = Transformer(ModelConfig(hidden_size=128, num_hidden_layers=8, **MOE)).model.layers[0].mlp
    for weight, std in ((layer.gate.weight, 0.02), (layer.experts[4].down_proj.weight, 0.005)):
        assert weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("chunk", [1, 4])
def test_cached_decoding_equals_the_full_forward(mixture, ids, mask, chunk):
    model = mixture(mlp_only_layers=(0,))
    cache = KVCache(model.config, 4, 9, torch.device("cpu"))
    parts = [model(ids[:, s : s + chunk], mask[:, s : s + chunk], cache) for s in range(0, 9, chunk)]
    assert_close(torch.cat(parts, 1)[mask], model(ids, mask)[mask], atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_padding_or_on_other_rows(mixture, ids, mask, junk):
    model = mixture()
    together = model(ids, mask)
    assert_close(model(junk, mask)[mask], together[mask])
    for row, n in enumerate(mask.sum(-1)):
        assert_close(model(ids[row : row + 1, :n])[0], together[row, :n], atol=1e-5, rtol=1e-5)


def test_it_generates(mixture):
    model, prompts = mixture(), [[3, 4, 5], [6]]
    for prompt, completion in zip(
        prompts, generate(model, prompts, SamplingConfig(max_tokens=8, temperature=0)), strict=True
    ):
        logits = model(torch.tensor([prompt + completion.ids]))
        assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == completion.ids


def routed(model, ids, mask):
    """-> logits of all routers, and a loss that contains the load-balancing loss."""
    with recorded_routing(model) as record:
        hidden = model.model(ids, mask)
    balance = load_balancing_loss(torch.stack(record), mask, model.config.num_experts_per_tok)
    return record, hidden[mask].square().mean() + balance


def test_routing_is_recorded_inside_the_context_only(mixture, make, ids, mask):
    model, outputs = mixture(mlp_only_layers=(0,)), []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda *args: outputs.append(args[2]))
    with recorded_routing(model) as record:
        model(ids, mask)
    model(ids, mask)
    assert len(record) == 1 and torch.equal(record[0], outputs[0].view(4, 9, 5)) and record[0].requires_grad
    copy.deepcopy(model)  # fails if a module holds a tensor with a graph
    with pytest.raises(ValueError, match="Transformer"), recorded_routing(model) as record:
        model(ids, mask.long())
    assert model.model.layers[1].mlp.record is None
    with recorded_routing(make()) as record:
        model(ids, mask)
    assert record == []


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_no_second_graph(mixture, ids, mask):
    gradients = []
    for on in (False, True):
        model = mixture()
        model.model.gradient_checkpointing = on
        record, loss = routed(model, ids, mask)
        loss.backward()
        assert len(record) == 2  # the backward pass runs blocks again and must not record
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[1], gradients[0])
    assert all(gradients[0][f"model.layers.{n}.mlp.gate.weight"].any() for n in (0, 1))


def test_under_autocast_the_router_computes_in_fp32(mixture):
    layer, x = mixture().model.layers[0].mlp, torch.randn(2, 3, 24)
    with recorded_routing(layer) as record, torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16  # as an MLP's output
    assert torch.equal(record[0], x @ layer.gate.weight.T)
    assert_close(out.float(), layer(x), atol=0.03, rtol=0.03)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_all_linear_adapts_and_quantises_experts_and_leaves_the_router_alone(mixture, ids):
    model = mixture()
    before = model(ids)
    apply_lora(model, LoRAConfig(r=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "model.layers.1.mlp.experts.4.up_proj.adapters.default.A" in trained
    assert not [name for name in trained if ".gate." in name]
    assert torch.equal(model(ids), before)
    model(ids).sum().backward()
    quantise_linears(merge_lora(model))
    assert "model.layers.1.mlp.experts.4.up_proj.codes" in model.state_dict()
    assert isinstance(model.model.layers[1].mlp.gate.weight, nn.Parameter)


def test_a_saved_model_comes_back(tmp_path, mixture, ids, mask):
    model = mixture(norm_topk_prob=False, mlp_only_layers=(0,), num_experts_per_tok=3, router_aux_loss_coef=0.5)
    save_pretrained(model, tmp_path)
    back = load_pretrained(tmp_path)
    assert back.config == model.config and torch.equal(back(ids, mask), model(ids, mask))
    names = {name for name in load_file(tmp_path / "model.safetensors") if ".layers.1.mlp." in name}
    parts = [f"experts.{e}.{part}_proj" for e in range(5) for part in ("gate", "up", "down")]
    assert names == {f"model.layers.1.mlp.{part}.weight" for part in ("gate", *parts)}
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["Qwen3MoeForCausalLM"] and raw["mlp_only_layers"] == [0]
    assert (raw["num_experts"], raw["num_experts_per_tok"], raw["moe_intermediate_size"]) == (5, 3, 12)


SIZES = {"model_type": "qwen3_moe", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ({}, ()),
        ({"mlp_only_layers": None}, ()),
        ({"mlp_only_layers": [3]}, (3,)),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (0, 2, 3)),
    ],
)
def test_layers_without_experts_are_listed_or_stand_between_the_sparse_steps(raw, plain):
    assert config_from(SIZES | raw).mlp_only_layers == plain


def test_settings_missing_in_config_json_get_the_familys_defaults():
    config = config_from(SIZES)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (128, 8, 768)
    assert not config.norm_topk_prob and config.router_aux_loss_coef == 0.001 and config.head_dim is None
    assert config_from(SIZES | {"num_local_experts": 16}).num_experts == 16  # the key of newer writers
    assert config_from(SIZES | {"use_sliding_window": True}).sliding_window == 4096
    assert config_from(SIZES | {"sliding_window": 16}).sliding_window is None


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"mlp_only_layers": 1}, "mlp_only_layers must be a list, got 1"),
        (
            {"decoder_sparse_step": 0},
            "decoder_sparse_step must be a whole number from 1 to 1,000,000,000,000,000, got 0",
        ),
        ({"num_experts": 4}, "ModelConfig: num_experts_per_tok must be at most num_experts, got 8 and 4"),
        ({"num_experts": None}, "num_experts must be a whole number, got None"),
    ],
)
def test_an_impossible_config_json_is_refused(raw, text):
    with refuses(text):
        config_from(SIZES | raw)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_experts": 1}, "num_experts_per_tok must be at most num_experts, got 2 and 1"),
        ({"num_experts": -1}, "num_experts must be at least 0 and at most 16384, got -1"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok must be at least 1 and at most 16384, got 0"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size must be at least 1 and at most 16777216, got 0"),
        ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef must be at least 0 and at most 16384, got -0.1"),
    ],
)
def test_impossible_mixtures_are_refused(settings, text):
    with refuses(f"ModelConfig: {text}"):
        ModelConfig(**settings)


def test_saving_experts_in_a_family_without_experts_is_refused(tmp_path, make):
    with pytest.raises(InputError, match="num_experts.* cannot be stored in a llama config.json"):
        save_pretrained(make(num_experts=2), tmp_path)
