"""`minirlhf plan`: the memory of a job, and settings that fit."""

import json
import re
import tomllib

import pytest

from minirlhf.cli import plan
from minirlhf.errors import InputError

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32_768,
}


@pytest.fixture
def planned(tmp_path, capsys):
    """planned("--gpus", 8) -> what the command prints, about a model of 7.6 billion parameters without weights."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))

    def planned(*words):
        plan.main(["--model", str(tmp_path), *map(str, words)])
        return capsys.readouterr().out

    return planned


GPUS = ("--gpus", 8, "--memory", 80)


def test_the_parts_of_the_memory_stand_in_a_table(planned):
    out = planned("--algorithm", "grpo", *GPUS)
    assert "7.62 billion parameters, --train all, on 8 GPUs with 80.0 GB each" in out
    header = next(line for line in out.splitlines() if "sampling" in line)
    assert header.split("  ")[0] == "grpo, fsdp"
    for part in ("weights", "optimizer", "gradients", "activations", "logits", "cache", "sum"):
        assert re.search(rf"^{part} .* GB", out, re.MULTILINE), part
    # AdamW's two moments in fp32, in slices on 8 GPUs
    assert re.search(r"^optimizer +7.6 GB +7.6 GB +7.6 GB$", out, re.MULTILINE)


def test_settings_that_do_not_fit_get_settings_that_do_as_a_command_with_reasons(planned):
    out = planned("--algorithm", "grpo", *GPUS)
    assert "does not fit: " in out and "the largest part is activations (backward begins)" in out
    command = next(line for line in out.splitlines() if "torchrun" in line)
    assert "torchrun --nproc-per-node 8 -m minirlhf train grpo --policy" in command and "--parallel fsdp" in command
    assert "smaller micro-batches keep the result" in out and "checkpointing" not in out
    words = command.split()[command.split().index("--policy") + 2 :]
    assert "\nfits: " in planned("--algorithm", "grpo", *GPUS, *words)
    assert "checkpointing computes blocks again" in planned("--algorithm", "grpo", "--gpus", 8, "--memory", 60)


def test_the_command_keeps_the_flags_that_were_given(planned):
    given = ("--reward", "exact_match", "--grpo.microbatch_tokens=32768", "--grpo.kl-coef", "0.1", "--parallel", "fsdp")
    out = planned("--algorithm", "grpo", "--gpus", 16, "--memory", 24, *given)
    command = next(line for line in out.splitlines() if "torchrun" in line)
    assert command.startswith("  torchrun --nnodes 2 --nproc-per-node 8 -m minirlhf train grpo --policy ")
    assert " --reward exact_match --grpo.kl-coef 0.1 " in command and command.count("--parallel") == 1
    assert command.count("microbatch_tokens") == 1 and "32768" not in command


def test_one_gpu_takes_adapters_and_says_why(planned):
    out = planned("--algorithm", "sft", "--gpus", 1, "--memory", 40)
    assert "does not fit" in out and "--train lora" in out and "adapters need no gradients" in out
    assert "torchrun" not in out
    assert "--sft.lr 0.0002" in out  # the default of adapters, 10 times that of whole models
    assert " --sft.lr 3e-5 " in planned("--algorithm", "sft", "--gpus", 1, "--memory", 40, "--sft.lr", "3e-5")
    assert " fits" not in planned("--algorithm", "sft", "--gpus", 1, "--memory", 4)


def test_the_least_memory_is_named_where_no_settings_fit_and_it_suffices(planned):
    words = ("--algorithm", "sft", "--gpus", 1, "--memory")
    needed = r"no settings fit: each process needs at least ([\d.]+) GB of free memory \((.*)\), got 4.0 GB"
    found = re.search(needed, planned(*words, 4))
    assert "--train qlora" in found[2] and "--gradient_checkpointing full" in found[2]
    assert "this fits" in planned(*words, found[1])
    assert "no settings fit" in planned(*words, float(found[1]) - 0.2)


@pytest.mark.parametrize("words", [("grpo", *GPUS), ("sft", "--gpus", 1, "--memory", 40)], ids=["grpo", "adapters"])
def test_a_file_has_the_settings_that_fit_and_the_table(planned, tmp_path, words):
    path = tmp_path / "fits.toml"
    out = planned("--algorithm", *words, "--fit", path)
    assert "this fits, with " in out and out.count("minirlhf train") == 2
    start = next(line for line in out.splitlines() if "--config" in line)
    assert f"minirlhf train {words[0]} --config {path}" in start and ("torchrun" in start) == (words[0] == "grpo")
    text = path.read_text()
    settings = tomllib.loads(text)
    assert text.startswith("# fits into memory by plan; changed settings: --")
    assert re.search("^# gradients .* GB", text, re.MULTILINE)
    assert settings["policy"] == str(tmp_path) and settings[words[0]]["lr"] == {"grpo": 1e-6, "sft": 2e-4}[words[0]]
    assert settings["train"] == {"grpo": "all", "sft": "lora"}[words[0]]
    assert settings["parallel"] == {"grpo": "fsdp", "sft": "auto"}[words[0]]
    again = planned("--algorithm", *words, "--config", path, "--fit", tmp_path / "again.toml")
    assert "\nfits: " in again  # and nothing is changed a second time
    assert tomllib.loads((tmp_path / "again.toml").read_text()) == settings
    assert "changed settings: none" in (tmp_path / "again.toml").read_text()


def test_no_file_is_written_where_nothing_fits_or_where_a_file_stands(planned, tmp_path):
    with pytest.raises(InputError, match=r"--fit .*fits.toml: no settings fit: each process needs at least [\d.]+ GB"):
        planned("--algorithm", "sft", "--gpus", 1, "--memory", 4, "--fit", tmp_path / "fits.toml")
    assert not (tmp_path / "fits.toml").exists()
    with pytest.raises(InputError, match="config.json: the file exists already; choose another name"):
        planned("--algorithm", "sft", *GPUS, "--fit", tmp_path / "config.json")


def test_a_function_as_reward_takes_no_memory_and_a_model_does(planned):
    weights = [
        re.search(r"^weights +([\d.]+) GB", planned("--algorithm", "grpo", *GPUS, *words), re.MULTILINE)[1]
        for words in ((), ("--reward", "exact_match"))
    ]
    assert float(weights[0]) == pytest.approx(3 * 7.61 * 4 / 8, abs=0.06)  # policy, reference, reward model
    assert float(weights[1]) == pytest.approx(2 * 7.61 * 4 / 8, abs=0.06)


def test_this_machine_is_planned_in_the_precision_of_the_job(planned, monkeypatch):
    monkeypatch.setattr(plan, "share_of_process", lambda device: 500e9)
    out = planned("--algorithm", "sft", "--tokens", 64, "--sft.batch_size", 1, "--precision", "fp32")
    assert "on this machine with 500.0 GB each" in out and "bf16 copies" not in out and "\nfits: " in out
    assert re.search(r"a step of sft takes (seconds|minutes|hours)", out)
    assert "bf16 copies" in planned("--algorithm", "sft", "--tokens", 64, "--sft.batch_size", 1, "--precision", "bf16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--algorithm", "pppo"), "minirlhf plan: needed a program .*, got 'pppo'; the nearest is ppo"),
        (("--algorithm", "sft", "--gpus", "8"), "minirlhf plan: needed the memory of each GPU, got none"),
        (("--algorithm", "sft", "--gpus", "12", "--memory", "80"), "more than 8 GPUs stand in machines of 8, got 12"),
        (("--algorithm", "sft", "--gpus", "0", "--memory", "80"), "PlanFlags: gpus must be at least 1"),
        (("--algorithm", "sft", "--memory", "-1"), "PlanFlags: memory must be above 0"),
        (("--algorithm", "sft", "--sft.batch_sizes", "1"), "no setting '--sft.batch_sizes'; the nearest is"),
        (("--algorithm", "sft", "--tokens", "x"), "--tokens: needed"),
        ((), "--algorithm: needed"),
    ],
)
def test_bad_flags_are_refused_by_name(planned, words, message):
    with pytest.raises(InputError, match=message):
        planned(*words)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        plan.main(["--model", str(tmp_path), "--algorithm", "sft"])
