"""Folders as other tools write them: one name of a tied weight, names with prefixes, shards, variants, pickles."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from minirlhf.errors import InputError
from minirlhf.model import RewardModel, Transformer, load_pretrained, save_pretrained
from minirlhf.pretrained.config_json import config_from
from minirlhf.pretrained.families import FAMILIES

SIZES = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 6}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 16}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tiny(model_type, tied=True):
    """A transformer of a family, with random weights."""
    family = FAMILIES[model_type]
    raw = {family.keys[name]: value for name, value in SIZES.items() if name in family.keys}
    raw |= {"model_type": model_type, "tie_word_embeddings": tied} | (EXPERTS if model_type == "qwen3_moe" else {})
    torch.manual_seed(0)
    model = Transformer(config_from(raw))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape)
    return model


def read(folder):
    return {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}


def written(folder, weights):
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")


def same(model, other):
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refuses(*parts):
    return pytest.raises(InputError, match=".*".join(map(re.escape, parts)))


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tiny("llama"), tmp_path)
    return tmp_path


each_family = pytest.mark.parametrize("model_type", FAMILIES)


# A tied weight


@each_family
def test_a_tied_weight_may_have_either_name_or_both(tmp_path, model_type):
    model = tiny(model_type)
    save_pretrained(model, tmp_path)
    weights = read(tmp_path)
    embedding = "transformer.wte.weight" if model_type == "gpt2" else EMBEDDING
    others = {name: weight for name, weight in weights.items() if name != embedding}
    for names in ([embedding], [HEAD], [embedding, HEAD]):
        written(tmp_path, others | {name: weights[embedding].clone() for name in names})
        assert same(load_pretrained(tmp_path), model), names
    written(tmp_path, others | {embedding: weights[embedding], HEAD: weights[embedding] + 1})
    with refuses("ties the head to the embedding", "lm_head.weight is not equal"):
        load_pretrained(tmp_path)


def test_a_tied_weight_that_safetensors_save_model_wrote_loads(folder):
    """save_model keeps one name of a shared tensor: the first in the alphabet, the head's."""
    model, tied = tiny("llama"), tiny("llama", tied=False)
    tied.load_state_dict(model.state_dict() | {HEAD: model.state_dict()[EMBEDDING]})
    tied.lm_head.weight = tied.model.embed_tokens.weight
    save_model(tied, str(folder / "model.safetensors"))
    assert EMBEDDING not in read(folder)
    assert same(load_pretrained(folder), model)


def test_a_single_name_in_an_untied_model_is_refused_with_the_setting_that_ties(tmp_path):
    save_pretrained(tiny("qwen2", tied=False), tmp_path)
    weights = read(tmp_path)
    for absent in (EMBEDDING, HEAD):
        written(tmp_path, {name: weight for name, weight in weights.items() if name != absent})
        with refuses(f"1 weights are missing: {absent}", '"tie_word_embeddings": true'):
            load_pretrained(tmp_path)


# Names with prefixes


PREFIXES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled blocks": lambda name: re.sub(r"(\.\d+\.)", r"\1_orig_mod.", name),
    "DDP": lambda name: f"module.{name}",
    "DDP of compiled": lambda name: f"module._orig_mod.{name}",
    "compiled DDP": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: "_fsdp_wrapped_module." + re.sub(r"(\.\d+\.)", r"\1_fsdp_wrapped_module.", name),
    "checkpointed": lambda name: re.sub(r"(\.\d+\.)", r"\1_checkpoint_wrapped_module.", name),
    "PEFT": lambda name: f"base_model.model.{name}",
    "TRL": lambda name: f"pretrained_model.{name}",
    "policy": lambda name: f"transformer.{name}",
    "doubled": lambda name: f"model.{name}",
    "bare": lambda name: re.sub(r"^(model|transformer)\.", "", name),
    "backbone": lambda name: re.sub(r"^(model|transformer)\.", "backbone.", name),
    "other root": lambda name: re.sub(r"^(model|transformer)\.", "encoder.decoder.", name),
}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("tied", [True, False])
def test_names_with_the_prefixes_of_wrappers_are_read(tmp_path, model_type, prefix, tied):
    model = tiny(model_type, tied)
    save_pretrained(model, tmp_path)
    written(tmp_path, {PREFIXES[prefix](name): weight for name, weight in read(tmp_path).items()})
    assert same(load_pretrained(tmp_path), model)


@pytest.mark.parametrize("prefix", ["compiled", "DDP", "doubled", "bare", "PEFT"])
def test_a_reward_model_with_prefixes_is_read(tmp_path, make, prefix):
    model = RewardModel(make())
    save_pretrained(model, tmp_path)
    written(tmp_path, {PREFIXES[prefix](name): weight for name, weight in read(tmp_path).items()})
    assert same(load_pretrained(tmp_path), model)


def test_surplus_weights_beside_a_prefix_are_named_as_in_the_file(folder):
    weights = {f"module.{name}": weight for name, weight in read(folder).items()}
    written(folder, weights | {"module.v_head.summary.weight": torch.zeros(1)})
    with refuses("1 weights do not belong to the model: module.v_head.summary.weight"):
        load_pretrained(folder)


def test_two_models_in_a_file_are_refused_with_their_prefixes(folder):
    weights = read(folder)
    written(folder, {f"{who}.{name}": weight + 0 for who in ("policy", "value") for name, weight in weights.items()})
    with refuses("weights are missing", "policy.model., value.model."):
        load_pretrained(folder)


def test_one_weight_under_two_names_of_a_file_must_be_equal(folder):
    weights = read(folder)
    name = "model.norm.weight"
    written(folder, weights | {f"module.{name}": weights[name] + 0})
    load_pretrained(folder)
    written(folder, weights | {f"module.{name}": weights[name] + 1})
    with refuses("model.norm.weight", "different"):
        load_pretrained(folder)


def test_an_adapter_beside_its_base_is_refused_with_the_way_to_merge(folder):
    weights = {f"base_model.model.{name}": weight for name, weight in read(folder).items()}
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weights[f"{name}.base_layer.weight"] = weights.pop(f"{name}.weight")
    weights |= {
        f"{name}.lora_A.default.weight": torch.zeros(2, 24),
        f"{name}.lora_B.default.weight": torch.zeros(24, 2),
    }
    written(folder, weights)
    with refuses("lora_A", "merge_and_unload"):
        load_pretrained(folder)


# Types


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.bool])
def test_packed_and_quantised_numbers_are_refused_by_their_type(folder, dtype):
    weights, name = read(folder), "model.layers.0.mlp.up_proj.weight"
    names = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.bool: "BOOL"}
    for packed in ({name: weights[name].to(dtype)}, {name.replace("weight", "qweight"): torch.zeros(3).to(dtype)}):
        rest = {other: weight for other, weight in weights.items() if other != name}
        written(folder, rest | packed)
        with refuses(f"{next(iter(packed))} ({names.get(dtype, 'F8_E4M3')})", "unquantised"):
            load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_all_float_types_are_read(folder, dtype):
    weights = {name: weight.to(dtype) for name, weight in read(folder).items()}
    written(folder, weights | {"model.layers.0.attn.masked_bias": torch.ones(1, dtype=torch.bool)})  # no weight
    assert load_pretrained(folder).dtype == dtype
    assert torch.equal(load_pretrained(folder, torch.float32).state_dict()[EMBEDDING], weights[EMBEDDING].float())


# Files


def split(folder, names, index=None):
    """Replace model.safetensors by shards of these names; `index` lists them."""
    weights = list(read(folder).items())
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(names):
        save_file(dict(weights[number :: len(names)]), folder / name)
    if index:
        where = {weight: names[number % len(names)] for number, (weight, _) in enumerate(weights)}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def test_a_complete_set_of_shards_is_read_without_an_index(folder):
    split(folder, SHARDS)
    assert same(load_pretrained(folder), tiny("llama"))
    (folder / SHARDS[1]).unlink()
    with refuses(f"{folder}: needed 3 files", f"found no {SHARDS[1]}"):
        load_pretrained(folder)


def test_leftovers_of_another_set_of_shards_are_refused_without_an_index(folder):
    split(folder, SHARDS)
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    with refuses("model-00001-of-00002.safetensors", SHARDS[0]):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (["model.fp16.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], None),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], None),
        (
            ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"],
            "model.safetensors.index.fp16.json",
        ),
    ],
)
def test_the_only_variant_of_a_folder_is_read_and_named(folder, capsys, names, index):
    split(folder, names, index)
    assert same(load_pretrained(folder), tiny("llama"))
    assert f"{folder}: reads the variant fp16" in capsys.readouterr().out


def test_of_several_variants_none_is_chosen(folder):
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "model.ema.safetensors").write_bytes((folder / "model.fp16.safetensors").read_bytes())
    with refuses("model.ema.safetensors", "model.fp16.safetensors", "rename"):
        load_pretrained(folder)


def test_plain_weights_win_over_variants(folder, capsys):
    save_file({"a": torch.zeros(1)}, folder / "model.fp16.safetensors")
    assert same(load_pretrained(folder), tiny("llama"))
    split(folder, SHARDS)
    assert same(load_pretrained(folder), tiny("llama")) and capsys.readouterr().out == ""


def test_weights_under_another_name_are_refused_with_the_usual_name(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with refuses("found weights.safetensors", "rename it to model.safetensors"):
        load_pretrained(folder)


def test_an_adapter_beside_a_config_is_refused_with_the_way_to_merge(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with refuses(
        f"{folder}: needed the weights of a model, found an adapter; minirlhf adapter merge {folder} --output"
    ):
        load_pretrained(folder)


def test_gguf_is_refused_as_what_it_is(folder):
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")
    with refuses("found model-Q4_K_M.gguf", "GGUF", "safetensors"):
        load_pretrained(folder)


# Pickles


def code_of_recipe(error):
    """The program in the command that an error prints, as a shell hands it to python."""
    python, flag, code = shlex.split(re.search(r"run in that folder: (python -c .*)$", str(error))[1])
    assert (python, flag) == ("python", "-c")
    return code


@pytest.mark.parametrize("kind", ["tied", "shards", "other name", "nested"])
def test_the_recipe_for_a_pickle_works_as_printed(folder, monkeypatch, kind):
    model, weights = tiny("llama"), read(folder)
    weights[HEAD] = weights[EMBEDDING]  # one tensor with two names, as tied models have
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].T.contiguous().T
    (folder / "model.safetensors").unlink()
    match kind:
        case "tied":
            torch.save(weights, folder / "pytorch_model.bin")
        case "shards":
            items = list(weights.items())
            for n in (0, 1):
                torch.save(dict(items[n::2]), folder / f"pytorch_model-0000{n + 1}-of-00002.bin")
            (folder / "pytorch_model.bin.index.json").write_text("{}")
        case "other name":
            torch.save(weights, folder / "it's my $HOME.pt")
        case "nested":
            torch.save({"epoch": 3, "state_dict": weights}, folder / "last.ckpt")
    (folder / "training_args.bin").write_bytes(b"")  # a pickle of no weights
    with pytest.raises(InputError, match="a pickle can run any program") as refused:
        load_pretrained(folder)
    monkeypatch.chdir(folder)
    exec(code_of_recipe(refused.value), {})
    assert same(load_pretrained(folder), model)
