"""`minirlhf adapter list | show | merge` on tiny adapters, through `main` as a user calls it."""

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.cli.main import main
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    RewardModel,
    Transformer,
    ValueModel,
    apply_lora,
    load_adapter,
    load_pretrained,
    load_reward_model,
    save_adapter,
    save_pretrained,
)
from minirlhf.text import Tokenizer

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"intermediate_size": 24, "max_position_embeddings": 32}
IDS = torch.arange(3, 20)[None]


def stirred(model, seed):
    """The model with noise on its trained parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """base/ (a model with its tokenizer), one/ and two/ (adapters for it), score/ (an adapter of a reward model)."""
    top = tmp_path_factory.mktemp("adapters")
    tokenizer = Tokenizer.train(["some words"], 260)
    torch.manual_seed(0)
    base = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE))
    save_pretrained(base, top / "base", tokenizer.token_ids)
    tokenizer.save(top / "base")
    for seed, name in enumerate(("one", "two"), start=1):
        config = LoRAConfig(r=seed, alpha=4.0, target_modules=("q_proj", "v_proj"))
        model = stirred(apply_lora(load_pretrained(top / "base"), config), seed)
        save_adapter(model, top / name, base=str(top / "base"))
    reward = RewardModel(load_pretrained(top / "base"))
    save_adapter(stirred(apply_lora(reward, LoRAConfig(r=2)), 3), top / "score", base=str(top / "base"))
    return top


@pytest.fixture
def call(monkeypatch, capsys):
    """call(*words) -> (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["minirlhf", "adapter", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_list_shows_every_adapter_below_a_folder(call, folders):
    code, out, _ = call("list", folders)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert code == 0 and [row[0] for row in rows] == [str(folders / name) for name in ("one", "score", "two")]
    # q and v of two layers: A [1, 16] and B [16, 1], A [1, 16] and B [8, 1]
    assert rows[0][1:] == ["LoRA", "1", str(2 * (32 + 24)), "Transformer", str(folders / "base")]
    assert rows[1][4] == "RewardModel"


def test_a_broken_adapter_does_not_hide_the_rest(call, folders, tmp_path):
    for name in ("a", "b"):
        save_adapter(apply_lora(load_pretrained(folders / "base"), LoRAConfig(r=1, use_dora=True)), tmp_path / name)
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    code, out, _ = call("list", tmp_path)
    broken, intact = out.splitlines()[2:]
    assert code == 0 and "cannot be read" in broken and "needed JSON" in broken
    assert "DoRA" in intact and intact.endswith("-")  # its file names no base


def test_show_gives_settings_and_the_size_of_each_update(call, folders):
    code, out, _ = call("show", folders / "two")
    assert code == 0 and re.search(r"^scale +2$", out, re.MULTILINE) and str(folders / "base") in out
    model = load_pretrained(folders / "base")
    load_adapter(model, folders / "two")
    layer = model.model.layers[1].self_attn.v_proj
    norm = layer.adapters["default"].delta(layer.base).norm().item()
    shown = next(line.split() for line in out.splitlines() if "layers.1.self_attn.v_proj" in line)
    assert shown[1:3] == ["8", "16"] and float(shown[3]) == pytest.approx(norm, rel=1e-3)
    assert "of single modules" not in out and "whole weights" not in out


def test_show_gives_ranks_of_single_modules_and_whole_weights(call, folders, tmp_path):
    shutil.copytree(folders / "two", tmp_path / "two")
    path, config = tmp_path / "two" / "adapter_model.safetensors", tmp_path / "two" / "adapter_config.json"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(3, 16)}, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {"layers.1.self_attn.v_proj": 8}}))
    code, out, _ = call("show", tmp_path / "two")
    assert code == 0 and re.search(r"^of single modules +alpha 8 for layers.1.self_attn.v_proj$", out, re.MULTILINE)
    assert re.search(r"^whole weights +lm_head$", out, re.MULTILINE)
    pattern = re.compile(r"^\S*layers\.1\.self_attn\.v_proj +8 +16 +(\S+)$", re.MULTILINE)
    norms = [float(pattern.search(text)[1]) for text in (out, call("show", folders / "two")[1])]
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-3)  # alpha 8 where the others have 4


def test_a_merged_folder_is_a_model_with_its_tokenizer(call, folders, tmp_path):
    code, out, _ = call("merge", folders / "one", "--output", tmp_path / "merged")
    assert code == 0 and "1 * " in out and " numbers in float32, 0.0 MB" in out
    adapted = load_pretrained(folders / "base")
    load_adapter(adapted, folders / "one")
    merged = load_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS), adapted(IDS), rtol=1e-5, atol=1e-5)
    assert Tokenizer.load(tmp_path / "merged").encode("words") == Tokenizer.load(folders / "base").encode("words")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_file_is_no_folder_to_merge_into(call, folders, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call("merge", folders / "one", "--output", tmp_path / "file")
    assert (code, err) == (2, f"error: {tmp_path / 'file'}: needed a folder, got a file; choose another folder\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_merges_never_write_into_one_folder(call, folders, tmp_path, monkeypatch):
    out = tmp_path / "merged"

    def other_merge_comes_first(path):
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("of another merge")

    monkeypatch.setattr("minirlhf.cli.adapter.lock", other_merge_comes_first)
    code, _, err = call("merge", folders / "one", "--output", out)
    assert code == 2 and "holds files already" in err
    assert (out / "config.json").read_text() == "of another merge" and len(list(out.iterdir())) == 1


def test_a_merged_folder_has_the_dtype_of_its_base(call, folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "half")
    save_pretrained(load_pretrained(folders / "base").bfloat16(), tmp_path / "half")
    code, out, _ = call("merge", folders / "one", "--base", tmp_path / "half", "--output", tmp_path / "merged")
    assert code == 0 and " numbers in bfloat16, 0.0 MB" in out
    assert {w.dtype for w in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_a_killed_merge_has_left_is_deleted(call, folders, tmp_path):
    for name in (".merged.7.tmp", ".other.7.tmp"):
        (tmp_path / name).mkdir()
    assert call("merge", folders / "one", "--output", tmp_path / "merged")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"merged", ".other.7.tmp"}


def test_merging_two_adapters_adds_them_with_weights(call, folders, tmp_path):
    code, _, _ = call(
        "merge", folders / "one", folders / "two", "--weights", "0.25", "-2", "--output", tmp_path / "merged"
    )
    assert code == 0
    parts = [load_pretrained(folders / "base") for _ in range(2)]
    for model, name in zip(parts, ("one", "two"), strict=True):
        load_adapter(model, folders / name)
    layers = [model.model.layers[0].self_attn.q_proj for model in parts]
    one, two = (layer.adapters["default"].delta(layer.base) for layer in layers)
    merged = load_pretrained(tmp_path / "merged").model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged, layers[0].base.weight + 0.25 * one - 2 * two)


def test_a_reward_models_adapter_makes_a_reward_model(call, folders, tmp_path):
    code, _, _ = call("merge", folders / "score", "--output", tmp_path / "merged")
    adapted = RewardModel(load_pretrained(folders / "base"))
    load_adapter(adapted, folders / "score")
    mask = torch.ones_like(IDS, dtype=torch.bool)
    merged = load_reward_model(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS, mask), adapted(IDS, mask), rtol=1e-5, atol=1e-5)
    assert code == 0 and merged(IDS, mask).abs() > 1e-3


def test_refusals(call, folders, tmp_path):
    one, two, score = (folders / name for name in ("one", "two", "score"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("x")
    hub = tmp_path / "hub"
    save_adapter(apply_lora(load_pretrained(folders / "base"), LoRAConfig(r=1)), hub, base="some/hub-name")
    small = tmp_path / "small"
    save_pretrained(Transformer(ModelConfig(vocab_size=40, **SHAPE | {"hidden_size": 8})), small)
    out = tmp_path / "out"
    broken = {"r": float("inf"), "base_model_name_or_path": 5, "lora_alpha": "x"}
    for key, value in broken.items():
        save_adapter(apply_lora(load_pretrained(folders / "base"), LoRAConfig(r=1)), tmp_path / key)
        path = tmp_path / key / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    cases = {
        ("show", tmp_path / "r"): "needed JSON with peft_type, r and lora_alpha",
        ("show", tmp_path / "lora_alpha"): "needed JSON with peft_type, r and lora_alpha",
        ("show", tmp_path / "base_model_name_or_path"): "base_model_name_or_path must be text, got 5",
        ("merge", one, "--weights", "nan", "--output", out): "needed finite numbers, got nan",
        (
            "merge",
            one,
            "--output",
            full / "precious.txt" / "x",
        ): "needed a folder that can be written, got: Not a directory",
        ("list", tmp_path / "nowhere"): "needed a folder to look in, found none",
        ("list", folders / "base"): "needed a folder with adapters in it (adapter_config.json), found none below it",
        ("show", folders / "base"): "needed an adapter folder with adapter_config.json, found none",
        ("merge", one, "--output", full): "holds files already; choose another --output",
        ("merge", one, "--weights", "1", "2", "--output", out): "needed a weight for each of the 1 adapters, got 2",
        ("merge", one, score, "--output", out): "have heads, and heads cannot be added; merge one adapter",
        ("merge", one, hub, "--output", out): f"for one base, they name {folders / 'base'}, some/hub-name",
        ("merge", hub, "--output", out): "its base must be a folder, it names some/hub-name; give the folder with",
        ("merge", two, "--base", small, "--output", out): "is the adapter for another base?",
        ("merge", two, "--base", one, "--output", out): "it is an adapter: minirlhf adapter merge",
    }
    for words, text in cases.items():
        code, _, err = call(*words)
        assert code == 2 and text in err and err.startswith("error: ") and err.count("\n") == 1, words
        assert not out.exists()
    assert [path.name for path in full.iterdir()] == ["precious.txt"]


def test_help_and_unknown_commands(call):
    assert call("--help")[0] == 0
    code, _, err = call("grow")
    assert code == 2 and "list" in err


def test_a_value_models_adapter_makes_a_value_model(call, folders, tmp_path):
    value = stirred(apply_lora(ValueModel(load_pretrained(folders / "base")), LoRAConfig(r=2)), 4)
    save_adapter(value, tmp_path / "value", base=str(folders / "base"))
    assert "ValueModel" in call("list", tmp_path)[1]
    code, _, _ = call("merge", tmp_path / "value", "--output", tmp_path / "merged")
    merged, mask = load_pretrained(tmp_path / "merged"), torch.ones_like(IDS, dtype=torch.bool)
    assert code == 0 and isinstance(merged, ValueModel)
    torch.testing.assert_close(merged(IDS, mask), value(IDS, mask), rtol=1e-5, atol=1e-5)


def test_a_merge_keeps_the_adapters_tokenizer_and_notes_another_base(call, folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "one")
    Tokenizer.load(folders / "base").with_template("zephyr").save(tmp_path / "one")
    shutil.copytree(folders / "base", tmp_path / "base")
    code, out, _ = call("merge", tmp_path / "one", "--base", tmp_path / "base", "--output", tmp_path / "merged")
    assert code == 0 and f"note: adapters made for {folders / 'base'}" in out
    assert Tokenizer.load(tmp_path / "merged").templates


def test_a_strangers_names_reach_the_terminal_printable_and_short(call, folders, tmp_path):
    for base in ("\x1b[2J\nbase", "a" * 100_000, "\0"):
        folder = tmp_path / f"adapter{len(base)}"
        save_adapter(apply_lora(load_pretrained(folders / "base"), LoRAConfig(r=1)), folder, base=base)
        for words in (["show", folder], ["list", folder]):
            code, out, _ = call(*words)
            assert code == 0 and len(out) < 4000 and "\x1b" not in out and "\0" not in out
        code, _, error = call("merge", folder, "--output", tmp_path / "out")
        assert code == 2 and len(error) < 1000 and error.strip().isprintable()
        assert "its base must be a folder" in error
        code, out, _ = call("merge", folder, "--base", folders / "base", "--output", tmp_path / f"merged{len(base)}")
        assert code == 0 and "note: adapters made for" in out and "\x1b" not in out and len(out) < 4000
