"""An impossible ModelConfig is refused, and the error names the numbers."""

import json
import re
from dataclasses import replace

import pytest

from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Transformer
from minirlhf.pretrained.saving import save_pretrained
from minirlhf.pretrained.weights import read_config


def test_head_dim_is_hidden_size_over_heads_unless_given():
    assert ModelConfig(hidden_size=96, num_attention_heads=4).head_width == 24
    assert ModelConfig(hidden_size=96, num_attention_heads=4, head_dim=10).head_width == 10


def test_head_dim_sets_the_width_of_attention_whatever_hidden_size_is(make, ids):
    model = make(head_dim=10)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (40, 24)
    assert model(ids).shape == (4, 9, 37)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"hidden_size": 65},
            "ModelConfig: hidden_size must be a multiple of num_attention_heads, got 65 and 4; or set head_dim",
        ),
        ({"hidden_size": 60}, "ModelConfig: head_dim must be even for rotary positions, got 15"),
        ({"head_dim": 5}, "ModelConfig: head_dim must be even for rotary positions, got 5"),
        (
            {"num_key_value_heads": 3},
            "ModelConfig: num_attention_heads must be a multiple of num_key_value_heads, got 4 and 3",
        ),
    ],
)
def test_impossible_shapes_are_refused(settings, text):
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        ModelConfig(**settings)


def test_config_json_gives_back_every_field(tmp_path):
    config = ModelConfig(
        vocab_size=11,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        intermediate_size=10,
        max_position_embeddings=8,
        rope_theta=123.0,
        rms_norm_eps=1e-3,
        tie_word_embeddings=False,
    )
    save_pretrained(Transformer(config), tmp_path)
    assert read_config(tmp_path) == (config, Transformer)


SHAPE = {"vocab_size": 9, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_impossible_shapes_in_config_json_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "architectures": ["LlamaForCausalLM"], "head_dim": 7}))
    with pytest.raises(InputError, match="head_dim must be even for rotary positions, got 7"):
        read_config(tmp_path)


def test_head_dim_follows_a_replaced_hidden_size():
    assert replace(ModelConfig(hidden_size=64), hidden_size=128).head_width == 32


@pytest.mark.parametrize("name", ["num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers"])
@pytest.mark.parametrize("count", [0, -4])
def test_counts_below_1_are_refused_by_name(name, count):
    with pytest.raises(InputError, match=f"{name}.*{count}"):
        ModelConfig(**{name: count})
