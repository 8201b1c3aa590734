"""The files of a model in training: adapters alone in checkpoints, whole models at the end."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, apply_lora
from minirlhf.model import Policy
from minirlhf.pretrained import load_policy
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
