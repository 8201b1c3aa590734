"""Policy, value and reward as adapters of one base: they share it, learn apart, and are folders for others."""

import json

import pytest
import torch

from minirlhf.model import load_adapter, load_pretrained

SHAPE = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32}
ADAPTERS = {
    "policy": "ppo/adapter",
    "reward": "reward/adapter",
    "value": "ppo/checkpoints/step-2/value",
}


def test_the_program_trains_three_adapters_and_leaves_the_base(call, inputs, tmp_path):
    job = tmp_path / "job"
    call("multi_adapter", tmp_path, "--data", inputs / "pairs.jsonl", "--output", job, "--lora.r", "2")
    base = load_pretrained(job / "sft" / "model")
    before = {name: p.clone() for name, p in base.named_parameters()}
    for folder in ADAPTERS.values():
        config = json.loads((job / folder / "adapter_config.json").read_text())
        assert config["r"] == 2 and config["base_model_name_or_path"] == str(job / "sft" / "model")
    load_adapter(base, job / ADAPTERS["policy"])
    merged = load_pretrained(job / "ppo" / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids), base(ids), rtol=1e-4, atol=1e-5)
    moved = [name for name, p in merged.named_parameters() if not torch.equal(p, before[name])]
    assert "lm_head.weight" in moved and len(moved) > 2
    assert all("proj" in name for name in moved if name != "lm_head.weight")  # the rest is the base's, to the bit

    summary = (job / "summary.json").read_text()
    call("multi_adapter", tmp_path, "--data", inputs / "pairs.jsonl", "--output", job, "--lora.r", "2", "--resume")
    old, new = json.loads(summary), json.loads((job / "summary.json").read_text())
    assert old.pop("seconds") >= 0 and new.pop("seconds") >= 0
    assert old == new  # finished stages are read again, not trained again


def test_training_all_weights_is_no_choice_here(call, inputs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        call("multi_adapter", tmp_path, "--data", inputs / "pairs.jsonl", "--train", "all")
    assert stop.value.code == 2 and "lora" in capsys.readouterr().err
