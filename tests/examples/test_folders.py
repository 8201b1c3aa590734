"""`--policy DIR` with small random folders of several families: the programs run from end to end and write one back."""

import json

import pytest
import torch

from minirlhf.model import Transformer, load_pretrained, save_pretrained
from minirlhf.model.families import config_from
from minirlhf.text import Tokenizer

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZE |= {"intermediate_size": 24, "max_position_embeddings": 96}
FOLDERS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "gemma2": {**SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12},
    "qwen3": {**SIZE, "head_dim": 8},
    "mistral": {**SIZE, "sliding_window": 12},
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, inputs):
    def make(family):
        folder = tmp_path_factory.mktemp(family)
        texts = [text for line in (inputs / "pairs.jsonl").open() for text in json.loads(line).values()]
        tokenizer = Tokenizer.train(texts, 280)
        torch.manual_seed(0)
        raw = {"model_type": family, "vocab_size": tokenizer.vocab_size, **FOLDERS[family]}
        save_pretrained(Transformer(config_from(raw)), folder, tokenizer.token_ids)
        tokenizer.save(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("family", "program"),
    [("gpt2", "ppo"), ("gpt2", "sft"), ("gemma2", "ppo"), ("gemma2", "dpo"), ("qwen3", "grpo"), ("mistral", "sft")],
)
def test_a_folder_of_another_family_is_trained_and_written_back(call, folder_of, inputs, tmp_path, family, program):
    folder = folder_of(family)
    call(program, tmp_path, "--policy", folder, "--data", inputs / "pairs.jsonl", "--output", tmp_path / "job")
    before, after = load_pretrained(folder), load_pretrained(tmp_path / "job" / program / "model")
    assert after.config == before.config and after.config.model_type == family
    assert not torch.equal(after.head_weight, before.head_weight)
    assert json.loads((tmp_path / "job" / program / "model" / "config.json").read_text())["model_type"] == family
