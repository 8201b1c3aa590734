"""The files of a model in training: adapters alone in checkpoints, whole models at the end."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora, plain, quantise_linears
from minirlhf.model import Policy, RewardModel
from minirlhf.pretrained import load_policy, load_pretrained, load_reward_model, save_pretrained
from minirlhf.pretrained.trained import has_adapter, load_trained, save_final, save_trained
from minirlhf.text import Tokenizer


@pytest.fixture
def policy(make, loud):
    """policy(seed, adapters): a policy, with adapters that change what it computes."""

    def policy(seed=0, adapters=False):
        model = Policy(make(seed))
        if adapters:
            apply_lora(model, LoRAConfig(r=2))
            loud(model.requires_grad_(True), seed)
        return model

    return policy


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a small text", "another small text"], vocab_size=300)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_whole_model_is_saved_with_its_tokenizer_and_loads(tmp_path, policy, tokenizer, ids, mask):
    trained, other = policy(), policy(seed=1)
    save_trained(trained, tmp_path / "policy", tokenizer, base="unused")
    assert not has_adapter(trained)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names(tmp_path / "policy")
    load_trained(other, tmp_path / "policy")
    assert_close(other(ids, mask).logps, trained(ids, mask).logps, rtol=0, atol=0)


def test_a_checkpoint_of_a_model_with_an_adapter_holds_the_adapter_alone(tmp_path, policy, tokenizer, ids, mask):
    trained, other = policy(adapters=True), policy(adapters=True)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "lora" in name:
                weight.zero_()
    save_trained(trained, tmp_path / "policy", tokenizer, base="the base")
    assert has_adapter(trained)
    assert names(tmp_path / "policy") == {"adapter_config.json", "adapter_model.safetensors"}
    assert '"the base"' in (tmp_path / "policy" / "adapter_config.json").read_text()
    load_trained(other, tmp_path / "policy")
    assert_close(other(ids, mask).logps, trained(ids, mask).logps, rtol=0, atol=0)


def test_the_final_model_has_the_adapter_merged(tmp_path, policy, tokenizer, ids, mask):
    trained = policy(adapters=True)
    save_final(trained, tmp_path / "model", tokenizer)
    assert {"model.safetensors", "tokenizer.json"} <= names(tmp_path / "model")
    assert "adapter_config.json" not in names(tmp_path / "model")
    assert_close(load_policy(tmp_path / "model")(ids, mask).logps, trained(ids, mask).logps, rtol=1e-5, atol=1e-4)


@pytest.fixture
def base(tmp_path, make):
    """base(dtype): the folder of a model in this dtype."""

    def base(dtype):
        save_pretrained(make().to(dtype), tmp_path / "base")
        return tmp_path / "base"

    return base


def stored(folder):
    """The dtypes in the files of a folder, and the dtype that config.json names."""
    weights = load_file(folder / "model.safetensors")
    named = json.loads((folder / "config.json").read_text())["torch_dtype"]
    return {name: weight.dtype for name, weight in weights.items()}, getattr(torch, named)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_merged_model_has_the_dtype_of_its_base_though_it_was_trained_in_fp32(
    tmp_path, base, loud, capsys, dtype, quantised
):
    model = load_policy(base(dtype), dtype=torch.float32)
    frozen = model.transformer.model.embed_tokens.weight.clone()
    if quantised:
        quantise_linears(model)
    apply_lora(model, LoRAConfig(r=2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".adapters." in name:
                p += 0.1
    before = {name: p.clone() for name, p in model.named_parameters()}
    save_final(model, tmp_path / "model", base=str(tmp_path / "base"))
    dtypes, named = stored(tmp_path / "model")
    assert {*dtypes.values()} == {dtype} and named == dtype
    numbers, size = sum(p.numel() for p in load_policy(tmp_path / "model").parameters()), dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().out == (
        f"final model: {numbers:,} numbers in {name}, {numbers * size / 1e6:,.1f} MB, as its base\n"
    )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # the model trains on in fp32
    whole = load_policy(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(whole.transformer.model.embed_tokens.weight, frozen)  # nothing is lost where nothing was trained
    weight = plain(model).transformer.model.layers[0].mlp.up_proj.weight
    assert torch.equal(whole.transformer.model.layers[0].mlp.up_proj.weight, weight.to(dtype).float())
    # a checkpoint keeps each digit of the adapter
    save_trained(model, tmp_path / "checkpoint", base=str(tmp_path / "base"))
    assert {w.dtype for w in load_file(tmp_path / "checkpoint" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_after_training_all_weights_the_model_keeps_fp32_and_says_so(tmp_path, base, capsys):
    model = load_policy(base(torch.bfloat16), dtype=torch.float32)
    save_final(model, tmp_path / "model", base=str(tmp_path / "base"))
    assert {*stored(tmp_path / "model")[0].values()} == {torch.float32} == {stored(tmp_path / "model")[1]}
    assert capsys.readouterr().out.endswith("numbers in float32, 0.0 MB; its base is bfloat16\n")
    save_pretrained(load_policy(tmp_path / "base", dtype=torch.float32), tmp_path / "base")
    save_final(model, tmp_path / "model", base=str(tmp_path / "base"))
    assert capsys.readouterr().out == ""  # nothing to tell


def test_the_score_of_a_reward_model_keeps_its_digits(tmp_path, base, make):
    folder = base(torch.bfloat16)
    model = apply_lora(RewardModel(load_pretrained(folder, torch.float32)), LoRAConfig(r=2))
    save_final(model, tmp_path / "model", base=str(folder))
    dtypes, named = stored(tmp_path / "model")
    assert dtypes.pop("score.weight") == torch.float32 and {*dtypes.values()} == {torch.bfloat16} == {named}
    assert torch.equal(load_reward_model(tmp_path / "model").score.weight, model.score.weight)


def test_a_base_that_is_gone_loses_no_final_model(tmp_path, make, capsys):
    save_final(apply_lora(Policy(make()), LoRAConfig(r=2)), tmp_path / "model", base=str(tmp_path / "gone"))
    assert load_policy(tmp_path / "model").transformer.dtype == torch.float32
    assert "gone: needed a model folder" in (said := capsys.readouterr().out) and "in float32" in said
