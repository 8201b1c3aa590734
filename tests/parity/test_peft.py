"""Adapters of peft give the same logits in minirlhf, and adapters of minirlhf give the same logits in peft."""

import dataclasses

import pytest
import torch
import transformers
from torch.testing import assert_close

from minirlhf.adapters.lora import LoRAConfig, apply_lora, merge_lora
from minirlhf.errors import InputError
from minirlhf.model import (
    ModelConfig,
    RewardModel,
    Transformer,
    load_pretrained,
    load_reward_model,
    resize_embeddings,
    save_pretrained,
)
from minirlhf.pretrained.adapter_config import NEUTRAL, NO_EFFECT, READ, REFUSED
from minirlhf.pretrained.adapter_files import load_adapter, save_adapter
from minirlhf.pretrained.config_json import config_from

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
VARIANTS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
TARGETS = {
    "all": ["all-linear"],
    "some": ["q_proj", "v_proj", "down_proj"],
    "one layer": ["model.layers.1.mlp.up_proj"],
}
each_target = pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)


def loud(model, seed=0, only=""):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if only in name:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


@pytest.fixture
def base(tmp_path):
    """A folder with a random Llama."""
    torch.manual_seed(0)
    save_pretrained(loud(Transformer(ModelConfig(**SHAPE))), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def ids():
    return torch.randint(3, 61, (3, 20), generator=torch.Generator().manual_seed(1))


def by_peft(base, targets, task="CAUSAL_LM", auto=transformers.AutoModelForCausalLM, name="default", **variant):
    """A random adapter made by peft on the base in a folder, with noise on its LoRA matrices and magnitudes."""
    model = auto.from_pretrained(base, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    targets = targets[0] if targets == ["all-linear"] else targets
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type=task, lora_dropout=0.1, **variant)
    return loud(peft.get_peft_model(model, config, adapter_name=name), seed=3, only="lora_")


def by_minirlhf(base, targets, **variant):
    """A random adapter made by minirlhf on the base in a folder."""
    model = apply_lora(load_pretrained(base), LoRAConfig(r=4, alpha=6.0, target_modules=tuple(targets), **variant))
    return loud(model, seed=4, only="adapters")


def same(first, second):
    """The difference is at most 1e-6 of the largest number."""
    assert_close(first, second, atol=1e-6 * max(1.0, second.abs().max().item()), rtol=1e-6)


@each_target
@each_variant
def test_an_adapter_of_peft_gives_the_same_logits(tmp_path, base, ids, variant, targets):
    other = by_peft(base, targets, **variant)
    other.save_pretrained(tmp_path / "adapter")
    model = load_pretrained(base).eval()
    plain = model(ids)
    load_adapter(model, tmp_path / "adapter")
    model.eval()
    with torch.no_grad():
        same(model(ids), other(ids).logits)
    assert (model(ids) - plain).abs().max() > 0.1


@each_target
@each_variant
def test_our_adapter_gives_the_same_logits_in_peft(tmp_path, base, ids, variant, targets):
    model = by_minirlhf(base, targets, **variant)
    save_adapter(model, tmp_path / "adapter", base=str(base))
    other = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # the file names the base
    with torch.no_grad():
        same(model(ids), other(ids).logits)


@each_variant
def test_an_adapter_on_the_head_goes_both_ways(tmp_path, ids, variant):
    torch.manual_seed(0)
    base, targets = tmp_path / "base", ["lm_head", "q_proj"]
    save_pretrained(loud(Transformer(ModelConfig(**SHAPE, tie_word_embeddings=False))), base)
    other = by_peft(base, targets, **variant)
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(base).eval()
    plain = model(ids)
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        same(model.eval()(ids), other(ids).logits)
    assert (model(ids) - plain).abs().max() > 0.1
    model = load_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match="lm_head.base_layer.weight is not the weight of the model"):
        load_adapter(model, tmp_path / "peft")
    model = by_minirlhf(base, targets, **variant)
    save_adapter(model, tmp_path / "minirlhf", base=str(base))
    other = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "minirlhf")
    assert other.base_model.model.lm_head.lora_A["default"].weight.abs().max() > 0.1
    with torch.no_grad():
        same(model(ids), other(ids).logits)


@each_variant
def test_dropout_drops_the_same_numbers(tmp_path, base, ids, variant):
    other = by_peft(base, ["q_proj", "down_proj"], **variant)
    other.save_pretrained(tmp_path / "adapter")
    model = load_pretrained(base)
    load_adapter(model, tmp_path / "adapter")
    torch.manual_seed(9)
    first = model.train()(ids)
    torch.manual_seed(9)
    same(first, other.train()(ids).logits)
    assert not torch.equal(first, model.eval()(ids))


@each_variant
def test_gradients_agree(tmp_path, base, ids, variant):
    other = by_peft(base, ["all-linear"], **variant)
    other.save_pretrained(tmp_path / "adapter")
    model = load_pretrained(base)
    load_adapter(model, tmp_path / "adapter")
    model.eval()
    weight = torch.randn(61, generator=torch.Generator().manual_seed(2))
    (model(ids) @ weight).sum().backward()
    (other(ids).logits @ weight).sum().backward()
    expected = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}.get(name[-1])
            part = part or "lora_magnitude_vector.default.weight"
            grad = expected.pop(f"base_model.model.{name.split('.adapters.')[0]}.{part}")
            assert_close(p.grad, grad, atol=1e-5 * grad.abs().max().item(), rtol=1e-5)
    assert not expected


@each_variant
def test_merged_weights_agree(tmp_path, base, ids, variant):
    other = by_peft(base, ["all-linear"], **variant)
    other.save_pretrained(tmp_path / "adapter")
    model = load_pretrained(base)
    load_adapter(model, tmp_path / "adapter")
    merged = merge_lora(model).state_dict()
    for name, weight in other.merge_and_unload().state_dict().items():
        if name != "lm_head.weight":  # tied
            assert_close(merged[name], weight, atol=1e-6, rtol=1e-6)


def test_several_merged_with_weights_agree(tmp_path, base, ids):
    other = by_peft(base, ["all-linear"], name="one")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    other.add_adapter("two", config)
    loud(other, seed=5, only="lora_B.two")
    other.save_pretrained(tmp_path)  # one folder for each adapter
    model = load_pretrained(base)
    for name in ("one", "two"):
        load_adapter(model, tmp_path / name, name)
    merge_lora(model, {"one": 0.3, "two": -0.6})
    delta = {}
    for name, weight in (("one", 0.3), ("two", -0.6)):
        for path, module in other.base_model.model.named_modules():
            if isinstance(module, peft.tuners.lora.Linear) and name in module.lora_A:
                delta[path] = delta.get(path, 0) + weight * module.get_delta_weight(name)
    plain = load_pretrained(base)
    with torch.no_grad():
        for path, change in delta.items():
            plain.get_submodule(path).weight += change
    same(model.eval()(ids), plain.eval()(ids))


def test_a_reward_models_adapter_goes_both_ways(tmp_path, base, ids):
    torch.manual_seed(0)
    folder = tmp_path / "reward"
    save_pretrained(loud(RewardModel(load_pretrained(base))), folder)
    mask = torch.arange(20) < torch.tensor([[20], [11], [1]])
    ids = torch.where(mask, ids, 0)
    auto = transformers.AutoModelForSequenceClassification
    other = by_peft(folder, ["q_proj", "v_proj"], "SEQ_CLS", auto)
    other.config.pad_token_id = other.base_model.model.config.pad_token_id = 0
    loud(other, seed=6, only="score.modules_to_save")  # the head was trained too
    other.save_pretrained(tmp_path / "peft")
    model = load_reward_model(folder)
    load_adapter(model, tmp_path / "peft")
    model.eval()
    with torch.no_grad():
        same(model(ids, mask), other(ids, attention_mask=mask.long()).logits.squeeze(-1))
        loud(model, seed=7, only="adapters")
        loud(model, seed=8, only="score")
        save_adapter(model, tmp_path / "minirlhf")
        plain = auto.from_pretrained(folder, num_labels=1, pad_token_id=0)
        other = peft.PeftModel.from_pretrained(plain, tmp_path / "minirlhf").eval()
        same(model(ids, mask), other(ids, attention_mask=mask.long()).logits.squeeze(-1))


@each_variant
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], ["attn.c_proj"]])
def test_gpt2_whose_weights_have_other_names_and_are_stored_transposed(tmp_path, ids, variant, targets):
    torch.manual_seed(0)
    size = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, bos_token_id=1, eos_token_id=2)).save_pretrained(
        tmp_path / "base"
    )
    other = by_peft(tmp_path / "base", targets, fan_in_fan_out=True, **variant)
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        same(model.eval()(ids), other(ids).logits)
        loud(model, seed=7, only="adapters")
        save_adapter(model, tmp_path / "minirlhf", base=str(tmp_path / "base"))
        same(model(ids), peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "minirlhf")(ids).logits)


def test_every_field_of_pefts_config_is_read_or_without_effect_or_refused(tmp_path):
    fields = {item.name for item in dataclasses.fields(peft.LoraConfig)}
    assert fields - (READ | NO_EFFECT | REFUSED | NEUTRAL.keys()) == set()
    assert READ | NO_EFFECT | REFUSED | NEUTRAL.keys() <= fields | {"value_model"}  # and no key of ours is misspelt


# Adapters that change the embedding or the head, and ranks and alphas by pattern

EMBEDDING = {
    "modules_to_save embedding": {"modules_to_save": ["embed_tokens"]},
    "modules_to_save head": {"modules_to_save": ["lm_head"]},
    "modules_to_save both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "modules_to_save tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "LoRA embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "rsLoRA embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True},
    "LoRA embedding alone": {"target_modules": ["embed_tokens"]},
    "LoRA both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "LoRA tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "LoRA head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding LoRA, head saved": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    "patterns": {
        "target_modules": ["q_proj", "up_proj", "embed_tokens"],
        "rank_pattern": {r"layers\.0\.(self_attn|mlp)\..*_proj": 2, "embed_tokens": 3},
        "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 3, "up_proj": 5, "tokens": 9, "embed_tokens": 2},
    },
}


def stirred(other):
    """Noise on everything that peft has put on the model."""
    return loud(loud(other, seed=3, only="lora_"), seed=6, only="modules_to_save.default")


@pytest.mark.parametrize("options", EMBEDDING.values(), ids=EMBEDDING)
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_an_embedding_or_a_head_goes_both_ways(tmp_path, ids, options, tied):
    torch.manual_seed(0)
    base = tmp_path / "base"
    save_pretrained(loud(Transformer(ModelConfig(**SHAPE, tie_word_embeddings=tied))), base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    other = stirred(peft.get_peft_model(plain, peft.LoraConfig(**config)))
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(base).eval()
    before = model(ids)
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        expected = other(ids).logits
        assert_close(model.eval()(ids), expected, atol=1e-5, rtol=1e-5)
        assert (expected - before).abs().max() > 0.1
        save_adapter(model, tmp_path / "minirlhf", base=str(base))
        if config["target_modules"] != ["embed_tokens"]:  # peft needs a module to adapt
            back = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "minirlhf").eval()
            assert_close(back(ids).logits, expected, atol=1e-5, rtol=1e-5)
        save_pretrained(merge_lora(model), tmp_path / "merged")
        whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert_close(whole(ids).logits, expected, atol=1e-5, rtol=1e-5)


FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma2": {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["LoRA", "modules_to_save"])
def test_families_with_other_names_or_a_scaled_embedding(tmp_path, ids, family, kind):
    torch.manual_seed(0)
    base = tmp_path / "base"
    save_pretrained(loud(Transformer(config_from({"model_type": family, "vocab_size": 61, **FAMILIES[family]}))), base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    embedding, target = ("wte", "c_attn") if family == "gpt2" else ("embed_tokens", "q_proj")
    options = {"target_modules": [target, embedding]} if kind == "LoRA" else {"modules_to_save": [embedding, "lm_head"]}
    config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": [target], **options})
    config.fan_in_fan_out = family == "gpt2"
    other = stirred(peft.get_peft_model(plain, config))
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(base)
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        assert_close(model.eval()(ids), other(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_made_after_new_tokens_were_added(tmp_path, ids, tied):
    """peft then saves embedding and head without a word in its config."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    save_pretrained(loud(Transformer(ModelConfig(**SHAPE, tie_word_embeddings=tied))), base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(64)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    other = loud(peft.get_peft_model(plain, config), seed=3, only="lora_")
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(base)
    with pytest.raises(InputError, match=r"resize_embeddings\(model, 64\) first"):
        load_adapter(model, tmp_path / "peft")
    load_adapter(resize_embeddings(model, 64), tmp_path / "peft")
    with torch.no_grad():
        assert_close(model.eval()(ids + 3), other(ids + 3).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": [1, 2]},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"modules_to_save": ["norm"]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"alora_invocation_tokens": [1]},
    ],
)
def test_adapters_of_peft_that_compute_something_else_are_refused_by_name(tmp_path, base, options):
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    peft.get_peft_model(plain, config).save_pretrained(tmp_path / "peft")
    name = {"target_modules": "embed_tokens", "modules_to_save": "norm.weight"}.get(min(options), min(options))
    with pytest.raises(InputError, match=name):
        load_adapter(load_pretrained(base), tmp_path / "peft")


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"exclude_modules": ["up_proj"], "target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": r".*\.1\..*_proj"},
    ],
)
def test_settings_without_effect_on_the_function_give_the_same_logits(tmp_path, base, ids, options):
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    other = loud(peft.get_peft_model(plain, config), seed=3, only="lora_")
    other.save_pretrained(tmp_path / "peft")
    model = load_pretrained(base)
    load_adapter(model, tmp_path / "peft")
    with torch.no_grad():
        same(model.eval()(ids), other(ids).logits)
