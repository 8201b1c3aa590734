"""Files of strangers: every value of a wrong type or size is refused in one line, before anything is built from it."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, load_pretrained, save_pretrained
from minirlhf.pretrained.config_json import SUPPORTED, TYPES, config_from, config_to
from minirlhf.pretrained.families import FAMILIES, FIELD_TYPES
from minirlhf.pretrained.rope_json import PLAIN
from minirlhf.pretrained.safe import JSON_BYTES, read_json
from minirlhf.pretrained.weights import read_config

CONTROLS = "\ud83d\n\x1b[2J"
VALUES = [None, True, False, 0, -1, 1, 3, 1.5, 4096.0, 10**9, 10**18, 10**400, 1e308, float("nan"), float("-inf"), "64"]
VALUES += ["a" * 100_000, CONTROLS, [], [1], [[]], ["a"], [None], [10**18, -1], {}, {"a": 1}, {CONTROLS: []}]
VALUES += [{"rope_type": ["yarn"]}, {"rope_type": "yarn", "factor": "2"}, {"rope_type": "yarn", "factor": 10**300}]
VALUES += [{"rope_type": "dynamic", "factor": float("nan")}, {"full_attention": [], "sliding_attention": 3}]
KEYS = {"model_type", "rope_parameters", "rope_scaling", "num_local_experts", *TYPES, *PLAIN, *SUPPORTED}
WRONG = {
    int: ["64", 64.0, True, [64], {}],
    float: ["1", True, [1.0], {}, float("nan"), float("inf")],
    bool: [1, "true"],
}
WRONG |= {str: [1, ["silu"], {}, True], list: ["ab", 3, True, {}]}


def raw_config(model_type):
    family = FAMILIES[model_type]
    fields = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}
    fields |= {"num_experts": 4} if "num_experts" in family.keys else {}
    fields |= family.defaults | {"head_dim": 6, "sliding_window": None} | family.settings
    return config_to(ModelConfig(**fields, model_type=model_type))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_any_value_of_any_key_gives_a_config_or_one_printable_line(model_type):
    raw, refused = raw_config(model_type), 0
    for key in sorted({*raw, *FAMILIES[model_type].keys.values(), *KEYS}):
        for value in VALUES:
            try:
                assert isinstance(config_from(raw | {key: value}), ModelConfig)
            except InputError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) < 400, (key, value)
    assert refused > 500


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_value_of_a_wrong_type_is_refused_by_the_name_of_its_key(model_type):
    raw = raw_config(model_type)
    types = {key: FIELD_TYPES[ours][0] for ours, key in FAMILIES[model_type].keys.items()}
    types |= {key: wanted for key, (wanted, _) in TYPES.items()} | {"model_type": str}
    for key, wanted in types.items():
        for value in WRONG[wanted]:
            with pytest.raises(InputError, match=f"^{key} must be "):
                config_from(raw | {key: value})
    for key in ("rope_parameters", "rope_scaling"):
        for value in (3, "yarn", [1], True) if FAMILIES[model_type].settings.get("positions") != "learned" else ():
            with pytest.raises(InputError, match=f"^{key} must be an object"):
                config_from(raw | {key: value})


@pytest.mark.parametrize("value", [{}, [[]], ["a", 3], "LlamaForCausalLM", 3, True, [CONTROLS], ["a" * 100_000]])
def test_architectures_are_a_list_of_known_names(folder, value):
    write(folder, architectures=value)
    with refuses(folder / "config.json") as caught:
        read_config(folder)
    assert "architecture" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "how"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("quantization", {"bits": 4, "group_size": 64}, "an unnamed method"),
        ("quantization_config", [[]], "an unnamed method"),
        ("quantization_config", {"quant_method": CONTROLS}, "\\ud83d\\n\\x1b[2J"),
    ],
)
def test_a_quantised_folder_is_named_with_its_method(folder, key, value, how):
    write(folder, **{key: value})
    with refuses(folder / "config.json") as caught:
        load_pretrained(folder)
    assert f"{key}: the weights are quantised with {how}; take the unquantised folder" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "how"),
    [
        ("quantize_config.json", '{"bits": 4, "group_size": 128}', "gptq"),
        ("quantize_config.json", '{"quant_method": "marlin"}', "marlin"),
        ("quant_config.json", "broken", "awq"),
    ],
)
def test_a_quantised_folder_is_named_also_by_a_file_beside_its_config(folder, name, text, how):
    load_pretrained(folder)
    (folder / name).write_text(text)
    with refuses(folder / name) as caught:
        load_pretrained(folder)
    assert f"{name}: the weights are quantised with {how}; take the unquantised folder" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"size": 1, "size": 2}', "the key 'size' stands twice"),
        ('{"size": ' + "9" * 5000 + "}", "digits"),
        ('{"size": 1e999}', "size must be a whole number, got inf"),
        ('{"size": true}', "size must be a whole number, got True"),
        ('{"size": 4.0}', "size must be a whole number, got 4.0"),
        ('{"\\ud800": 1}', "size is missing"),
        (b'{"size": "\xff"}', "codec can't decode"),
        ("", "Expecting value"),
        (b" " * (JSON_BYTES + 1), "more than 67,108,864 bytes"),
    ],
    ids=range(11),
)
def test_a_broken_json_file_is_refused_with_its_reason(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: needed JSON.*{re.escape(reason)}"):
        read_json(path, "JSON with size", size=int)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_json(tmp_path, "JSON")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"size": 1}')
    assert read_json(tmp_path / "x.json", "JSON", size=int) == {"size": 1}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be a whole number from 1 to 16,384, got 1000000"),
        ({"num_hidden_layers": 16_384}, "holds 20 weights, too few for the 16,384 layers that config.json promises"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"vocab_size": 10**18}, "vocab_size must be a whole number from"),
        (
            {"vocab_size": 16_000_000},
            r"embed_tokens.weight must be \(16000000, 24\) as config.json says, got \(37, 24\)",
        ),
        ({"hidden_size": 16_000_000}, r"embed_tokens.weight must be \(37, 16000000\) as config.json says"),
        ({"intermediate_size": 16_000_000}, r"proj.weight must be \(\d+, \d+\) as config.json says"),
        ({"head_dim": 16_384, "num_attention_heads": 16_384}, "proj.weight must be"),
    ],
)
def test_sizes_are_compared_with_the_files_before_a_model_is_built(folder, changes, text):
    write(folder, **changes)
    with pytest.raises(InputError, match=text):
        load_pretrained(folder)


def test_the_number_of_experts_is_compared_with_the_files(tmp_path, make):
    save_pretrained(make(num_experts=4, moe_intermediate_size=8, model_type="qwen3_moe", qk_norm="head"), tmp_path)
    write(tmp_path, num_experts=16_000, num_hidden_layers=16_000)
    with pytest.raises(InputError, match="too few for the 16,000 layers with 16,000 experts each"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", [3, None, [], {}, "../model.safetensors", "/etc/passwd", "a" * 5000, "\0", "..", "", CONTROLS]
)
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder, name):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with refuses(folder) as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < 600


def test_names_of_weights_are_shown_short_and_printable(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {f"{CONTROLS[1:]}{'a' * 100_000}{i}": torch.zeros(1) for i in range(9)}, path)
    with refuses(path) as caught:
        load_pretrained(folder)
    assert "9 weights do not belong to the model: \\n\\x1b" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.fixture
def folder(tmp_path, make):
    save_pretrained(make(), tmp_path)
    return tmp_path


def write(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuses(path):
    """The error begins with the path and is one printable line."""
    return pytest.raises(InputError, match=rf"^{re.escape(str(path))}.*: [ -~]*$")
