"""Model folders in the Hugging Face layout: saved models load, broken folders are refused."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.errors import InputError
from minirlhf.model import (
    ModelConfig,
    Policy,
    RewardModel,
    Transformer,
    ValueModel,
    load_policy,
    load_pretrained,
    load_reward_model,
    save_pretrained,
)
from minirlhf.pretrained.weights import load_into


def refuses(text):
    return pytest.raises(InputError, match=f"^{re.escape(text)}$")


def same_weights(model, other):
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(tmp_path, make):
    save_pretrained(make(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", [Transformer, RewardModel, ValueModel])
def test_a_saved_model_comes_back(tmp_path, make, loud, ids, mask, model_class, tied):
    transformer = make(tie_word_embeddings=tied)
    model = transformer if model_class is Transformer else loud(model_class(transformer))
    save_pretrained(model, tmp_path / "a" / "b")
    loaded = load_pretrained(tmp_path / "a" / "b")
    assert type(loaded) is model_class and loaded.config == model.config and same_weights(loaded, model)
    assert torch.equal(loaded(ids, mask), model(ids, mask))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_comes_back_with_its_value_head(tmp_path, make, loud, ids, mask, tied):
    policy = loud(Policy(make(tie_word_embeddings=tied), value_head=True))
    save_pretrained(policy, tmp_path)
    loaded = load_policy(tmp_path, value_head=True)
    assert same_weights(loaded, policy)
    for first, second in zip(loaded(ids, mask), policy(ids, mask), strict=True):
        assert torch.equal(first, second)
    assert load_policy(tmp_path).value_head is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 25)])
def test_a_value_head_of_another_width_is_refused(tmp_path, make, shape):
    save_pretrained(Policy(make(), value_head=True), tmp_path)
    save_file({"weight": torch.ones(shape), "bias": torch.ones(1)}, tmp_path / "value_head.safetensors")
    text = re.escape(f"value_head.safetensors: weight must be (1, 24) as the policy needs, got {shape}")
    with pytest.raises(InputError, match=text):
        load_policy(tmp_path, value_head=True)


def test_a_policy_saved_without_value_head_gets_a_fresh_one(folder):
    head = load_policy(folder, value_head=True).value_head
    assert not head.weight.any() and not head.bias.any()


def test_load_into_fills_a_model_that_exists(tmp_path, make, loud):
    saved, model = (loud(Policy(make(), value_head=True), seed) for seed in (1, 2))
    save_pretrained(saved, tmp_path)
    load_into(model, tmp_path)
    assert same_weights(model, saved)
    scorer, other = (loud(RewardModel(make()), seed) for seed in (1, 2))
    save_pretrained(scorer, tmp_path / "reward")
    load_into(other, tmp_path / "reward")
    assert same_weights(other, scorer)


def test_bf16_weights_load_into_full_precision(folder, make):
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    loaded = load_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in weights.items())


def test_config_json_is_that_of_a_hugging_face_llama(folder):
    config = json.loads((folder / "config.json").read_text())
    assert (
        config
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": "float32",
            "vocab_size": 37,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "intermediate_size": 40,
            "max_position_embeddings": 16,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }
        == config
    )


def test_config_json_names_the_model_class(tmp_path, make):
    save_pretrained(RewardModel(make()), tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["num_labels"] == 1 and config["id2label"] == {"0": "score"}
    save_pretrained(ValueModel(make()), tmp_path / "value")
    config = json.loads((tmp_path / "value" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"] and config["value_model"] is True
    assert "score.weight" in load_file(tmp_path / "value" / "model.safetensors")  # the name in other tools


def test_weights_have_hugging_face_names(folder, tmp_path, make):
    names = set(load_file(folder / "model.safetensors"))
    block = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
    block += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in block}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert names == expected
    save_pretrained(make(tie_word_embeddings=False), tmp_path / "untied")
    assert set(load_file(tmp_path / "untied" / "model.safetensors")) == expected | {"lm_head.weight"}
    save_pretrained(Policy(make(), value_head=True), tmp_path / "policy")
    assert set(load_file(tmp_path / "policy" / "model.safetensors")) == expected
    save_pretrained(RewardModel(make()), tmp_path / "reward")
    assert set(load_file(tmp_path / "reward" / "model.safetensors")) == expected | {"score.weight"}


def test_missing_folder_or_config_is_refused(tmp_path, folder):
    missing = tmp_path / "nowhere"
    advice = "check the path; OWNER/NAME names a model of the hub only if no folder OWNER is here"
    with refuses(f"{missing}: needed a model folder with config.json, found none; {advice}"):
        load_pretrained(missing)
    (folder / "config.json").unlink()
    with refuses(f"{folder}: needed a model folder with config.json, found none; {advice}"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"vocab_size": 3', "Expecting ',' delimiter"),
        ("[]", "it is no object"),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_broken_config_is_refused(folder, text, reason):
    path = folder / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    needed = f"{path}: needed a model's JSON with vocab_size and architectures ({reason}"
    with pytest.raises(InputError, match=f"^{re.escape(needed)}.*\\)$"):
        load_pretrained(folder)


def test_a_config_without_a_needed_field_is_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        path.write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        with refuses(f"{path}: {name} is missing; a model needs it"):
            load_pretrained(folder)


def test_an_unknown_family_is_refused_with_the_nearest(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gemma", "architectures": ["Gemma"]}))
    with pytest.raises(InputError, match="model_type must be one of llama, .*, got 'gemma'; the nearest is gemma2$"):
        load_pretrained(folder)


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_a_folder_of_an_encoder_decoder_is_refused_with_its_reader(folder, family):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": family}))
    with pytest.raises(InputError, match=f"got '{family}'; minirlhf.extras.seq2seq.load_seq2seq reads this folder$"):
        load_pretrained(folder)


def test_unknown_architecture_is_refused_with_the_known_ones(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["GPT2LMHeadModel"]}))
    with refuses(
        f"{path}: architecture must be one of LlamaForCausalLM, LlamaForSequenceClassification, "
        "LlamaForTokenClassification, "
        "got ['GPT2LMHeadModel']"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize("architectures", [None, [], ...])
def test_without_architectures_a_folder_holds_a_language_model(folder, architectures):
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "architectures"}
    path.write_text(json.dumps(config | ({} if architectures is ... else {"architectures": architectures})))
    assert type(load_pretrained(folder)) is Transformer
    del config["model_type"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="model_type and architectures are missing"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"hidden_act": "relu"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}},
        {
            "rope_parameters": {"type": "yarn", "factor": 2.0},
            "model_type": "phi3",
            "architectures": ["Phi3ForCausalLM"],
        },
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}},
    ],
)
def test_an_unsupported_setting_is_refused(folder, setting):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(InputError, match=next(iter(setting))):
        load_pretrained(folder)


def test_rope_theta_is_read_from_rope_parameters(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_theta"]
    path.write_text(json.dumps(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}))
    assert load_pretrained(folder).config.rope_theta == 500.0


def test_scaling_added_to_a_folder_makes_the_context_longer(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    assert raw["max_position_embeddings"] == 16
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    path.write_text(json.dumps(raw | {"rope_scaling": scaling}))
    model = load_pretrained(folder)
    assert model(torch.zeros(1, 64, dtype=torch.int64)).isfinite().all()
    save_pretrained(model, folder)
    assert load_pretrained(folder).config == model.config


def test_missing_and_surplus_weights_are_refused(folder):
    path = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    removed = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("down", "gate", "up")] + ["model.norm.weight"]
    save_file({name: tensor for name, tensor in weights.items() if name not in removed}, path)
    with refuses(f"{path}: 4 weights are missing: {', '.join(removed)}; is it another model?"):
        load_pretrained(folder)
    save_file(weights | {"b": torch.zeros(1), "a": torch.zeros(1)}, path)
    with refuses(f"{path}: 2 weights do not belong to the model: a, b"):
        load_pretrained(folder)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 0}, path)
    load_pretrained(folder)  # the head is tied, and also in the file
    save_file(weights | {"lm_head.weight": torch.zeros(37, 24)}, path)
    with refuses(
        f"{path}: config.json ties the head to the embedding, but lm_head.weight is not equal to it; if "
        'the head is right, write "tie_word_embeddings": false; else delete the head from the file'
    ):
        load_pretrained(folder)


def test_a_file_of_mixed_dtypes_is_read_in_the_embeddings_dtype(tmp_path, make, ids):
    save_pretrained(RewardModel(make(tie_word_embeddings=False)).bfloat16(), tmp_path)
    path = tmp_path / "model.safetensors"
    mixed = ("score.weight", "model.layers.0.mlp.up_proj.weight")
    save_file({name: w.float() if name in mixed else w for name, w in load_file(path).items()}, path)
    model = load_pretrained(tmp_path)
    assert {name for name, p in model.named_parameters() if p.dtype == torch.float32} == {"score.weight"}
    assert model(ids, ids >= 0).isfinite().all()


def test_weights_of_another_shape_are_refused(folder, make, loud):
    config, path = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 41}))
    name = "model.layers.0.mlp.up_proj.weight"
    with refuses(f"{path}: {name} must be (41, 24) as config.json says, got (40, 24)"):
        load_pretrained(folder)
    model = make(seed=3, num_key_value_heads=4)
    before = model.state_dict()["model.norm.weight"].clone()
    with pytest.raises(InputError, match=r"k_proj.weight must be \(24, 24\) as config.json says, got \(12, 24\)$"):
        load_into(model, folder)
    assert torch.equal(model.state_dict()["model.norm.weight"], before)  # no weight was loaded


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 4, 0):
        path.write_bytes(content[:length])
        needed = f"{path}: needed a complete safetensors file ("
        with pytest.raises(InputError, match=f"^{re.escape(needed)}.*\\); copy or save it again$"):
            load_pretrained(folder)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickles_are_never_opened(folder):
    path = folder / "model.safetensors"
    path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))}: needed this file, found pytorch_model.bin; a pickle can run"
    ):
        load_pretrained(folder)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: needed a complete safetensors file"):
        load_pretrained(folder)


def test_a_model_of_another_class_is_refused(tmp_path, folder, make):
    save_pretrained(RewardModel(make()), tmp_path / "reward")
    save_pretrained(ValueModel(make()), tmp_path / "value")
    with refuses(f"{tmp_path / 'reward'}: needed a language model, got a RewardModel; check the folder"):
        load_policy(tmp_path / "reward")
    with refuses(f"{tmp_path / 'value'}: needed a language model, got a ValueModel; check the folder"):
        load_policy(tmp_path / "value")
    with refuses(f"{folder}: needed a reward model, got a Transformer; check the folder"):
        load_reward_model(folder)
    assert isinstance(load_reward_model(tmp_path / "reward"), RewardModel)


def test_saving_without_value_head_removes_an_old_one(tmp_path, make, loud):
    save_pretrained(loud(Policy(make(), value_head=True)), tmp_path)
    save_pretrained(Policy(make()), tmp_path)
    assert not load_policy(tmp_path, value_head=True).value_head.weight.any()


@pytest.mark.parametrize(
    "setting", [{"hidden_size": "24"}, {"hidden_size": 24.0}, {"rms_norm_eps": None}, {"rms_norm_eps": "1"}]
)
def test_ill_typed_settings_in_config_json_are_refused(folder, setting):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(InputError, match=next(iter(setting))):
        load_pretrained(folder)


def test_token_ids_are_written_to_config_json(tmp_path, make):
    save_pretrained(make(), tmp_path, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == 0


FIRST_LOAD = """
import sys, torch
from pathlib import Path
from minirlhf.model import load_pretrained

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.ones(1, dtype=torch.bfloat16).float()
before = resident("VmRSS")
model = load_pretrained(sys.argv[1], torch.float32)
print((resident("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
assert "torch._dynamo" not in sys.modules  # importing it costs a second and 80 MB
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_a_first_load_holds_converted_weights_once_and_frees_pages_of_the_file(tmp_path):
    # 92 MB as float32, no weight above 2 MB; the file of bf16 weights, mapped throughout, would add half of it
    model = Transformer(ModelConfig(vocab_size=1000, hidden_size=512, num_hidden_layers=10, intermediate_size=1000))
    save_pretrained(model.bfloat16(), tmp_path)
    command = [sys.executable, "-c", FIRST_LOAD, str(tmp_path)]
    rise = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 1 <= rise < 1.2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_that_are_stored_transposed_come_back_as_linears_have_them(tmp_path, make, dtype):
    gpt2 = {"norm": "layer", "gated_mlp": False, "fused_projections": True, "positions": "learned"}
    gpt2 |= {"attention_bias": True, "output_bias": True, "mlp_bias": True, "hidden_act": "gelu_tanh"}
    model = make(model_type="gpt2", num_key_value_heads=4, **gpt2)
    save_pretrained(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    loaded = load_pretrained(tmp_path, dtype)
    assert all(p.is_contiguous() for p in loaded.parameters()) and same_weights(loaded, model.to(dtype))
    other = make(seed=1, model_type="gpt2", num_key_value_heads=4, **gpt2)
    load_into(other, tmp_path)
    assert same_weights(other.to(dtype), model)
