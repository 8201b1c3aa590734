"""Adapters of peft give the same logits in minirlhf, and adapters of minirlhf give the same logits in peft."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from minirlhf.adapters.lora import LoRAConfig, apply_lora, merge_lora
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, RewardModel, Transformer, load_pretrained, load_reward_model, save_pretrained
from minirlhf.pretrained.adapter_files import load_adapter, save_adapter

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
