"""`--policy DIR` with small random folders of several families: the programs run from end to end and write one back."""

import json
import shutil
import tomllib

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from minirlhf.data import Batches, encode_rows, read_rows
from minirlhf.jobs import learning_rates
from minirlhf.model import (
    LoRAConfig,
    Transformer,
    apply_lora,
    load_adapter,
    load_policy,
    load_pretrained,
    save_adapter,
    save_pretrained,
)
from minirlhf.pretrained.config_json import config_from
from minirlhf.tasks import task_from_rows
from minirlhf.text import Tokenizer

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZE |= {"intermediate_size": 24, "max_position_embeddings": 96}
FOLDERS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "gemma2": {**SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12},
    "qwen3": {**SIZE, "head_dim": 8},
    "mistral": {**SIZE, "sliding_window": 12},
    "qwen3_moe": {**SIZE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
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


def flags(folder, inputs, tmp_path, *more):
    return "--policy", folder, "--data", inputs / "pairs.jsonl", "--output", tmp_path / "job", *more


FAMILIES_AND_PROGRAMS = [(family, program) for family in FOLDERS for program in ("ppo", "grpo", "dpo", "sft")]
# the default tier has each family and each program, the slow tier every pair of them
ALL = {("gpt2", "ppo"), ("gemma2", "grpo"), ("qwen3", "dpo"), ("mistral", "sft"), ("qwen3_moe", "ppo")}
ADAPTED = {("gpt2", "unpaired", "lora"), ("gemma2", "dpo", "lora"), ("qwen3_moe", "grpo", "lora")}
ADAPTED |= {("gemma2", "sft", "qlora"), ("qwen3", "online_dpo", "qlora"), ("mistral", "ppo", "qlora")}


def tiers(cases, default):
    return [case if case in default else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("family", "program"), tiers(FAMILIES_AND_PROGRAMS, ALL))
def test_a_folder_of_another_family_is_trained_and_written_back(call, folder_of, inputs, tmp_path, family, program):
    folder = folder_of(family)
    call(program, tmp_path, "--policy", folder, "--data", inputs / "pairs.jsonl", "--output", tmp_path / "job")
    before, after = load_pretrained(folder), load_pretrained(tmp_path / "job" / program / "model")
    assert after.config == before.config and after.config.model_type == family
    assert not torch.equal(after.head_weight, before.head_weight)
    assert json.loads((tmp_path / "job" / program / "model" / "config.json").read_text())["model_type"] == family


MORE = [("gpt2", "unpaired"), ("qwen3", "online_dpo")]
EVERY = [(*pair, train) for pair in [*FAMILIES_AND_PROGRAMS, *MORE] for train in ("lora", "qlora")]


@pytest.mark.parametrize(("family", "program", "train"), tiers(EVERY, ADAPTED))
def test_adapters_alone_are_trained(call, folder_of, inputs, tmp_path, capsys, family, program, train):
    folder = folder_of(family)
    call(program, tmp_path, *flags(folder, inputs, tmp_path, "--train", train, "--lora.r", 4))
    run = tmp_path / "job" / program
    base, adapted, merged = load_pretrained(folder), load_pretrained(folder), load_pretrained(run / "model")
    assert load_adapter(adapted, run / "adapter").r == 4
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert (checkpoint / "policy" / "adapter_model.safetensors").is_file()  # and no copy of the base
    assert not list(checkpoint.rglob("model.safetensors"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        if train == "lora":  # the adapter on its base is the merged model, and more than the base
            assert_close(merged(ids), adapted(ids), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(ids), base(ids), rtol=1e-4, atol=1e-5)
    learned = [w for name, w in load_file(run / "adapter" / "adapter_model.safetensors").items() if "lora_B" in name]
    assert any(w.abs().max() > 0 for w in learned)  # where nothing was learned B is 0
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)
    said = capsys.readouterr().out
    assert f"{train}: " in said and ("in 4 bits: " in said) == (train == "qlora")


def test_a_run_of_adapters_goes_on_where_it_stopped(call, folder_of, inputs, tmp_path):
    """Two steps in one go, or one, a stop and another one: the same weights to the bit."""
    folder = folder_of("qwen3")
    train = ["--train", "lora", "--ppo.separate_value_model", "true", "--run.save_every", "1", "--lora.dropout", "0.1"]
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
        call("ppo", tmp_path, *flags(folder, inputs, tmp_path / name, *train))
    run = tmp_path / "halves" / "job" / "ppo"
    for gone in ("model", "adapter", "checkpoints/step-2"):
        shutil.rmtree(run / gone)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    call("ppo", tmp_path, *flags(folder, inputs, tmp_path / "halves", *train, "--resume"))
    one, two = (load_pretrained(tmp_path / name / "job" / "ppo" / "model") for name in ("whole", "halves"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert (run / "checkpoints" / "step-2" / "value" / "adapter_model.safetensors").is_file()


def test_stages_build_on_one_another(call, inputs, tmp_path):
    """Without a folder SFT trains all weights, for there is no base; the stages after it adapt what it made."""
    call("ppo", tmp_path, "--data", inputs / "pairs.jsonl", "--output", tmp_path / "job", "--train", "lora")
    assert not (tmp_path / "job" / "sft" / "adapter").exists()
    for stage in ("reward", "ppo"):
        config = json.loads((tmp_path / "job" / stage / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tmp_path / "job" / "sft" / "model")


def test_a_student_has_no_base_to_adapt(call, inputs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        call("distillation", tmp_path, "--data", inputs / "pairs.jsonl", "--train", "lora")
    assert stop.value.code == 2 and "this program trains all weights of a new model" in capsys.readouterr().err


def test_a_large_folder_has_its_own_learning_rate_and_a_resumed_job_the_same(
    call, inputs, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(learning_rates, "SMALL", 10.0), monkeypatch.setattr(learning_rates, "LARGE", 100.0)
    argv = ["--data", inputs / "pairs.jsonl", "--policy", finished / "sft", "--output", tmp_path / "job"]
    call("dpo", tmp_path, *argv)
    assert "million parameters, --train all: dpo.lr 1e-06\n" in capsys.readouterr().out
    config = (tmp_path / "job" / "dpo" / "config.toml").read_text()
    assert "\nlr = 1e-06\n" in config
    lines = (tmp_path / "job" / "dpo" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["lr"] for line in lines) <= 1e-6
    call("dpo", tmp_path, *argv, "--resume")  # the same settings: nothing is refused
    with pytest.raises(SystemExit):
        call("dpo", tmp_path, *argv, "--resume", "--dpo.lr", "1e-3")
    assert "it began with 'lr = 1e-06', but the settings now say 'lr = 0.001'" in capsys.readouterr().err
    rates = [tomllib.loads((finished / stage / "config.toml").read_text()) for stage in ("sft", "reward", "ppo")]
    assert [rates[0]["sft"]["lr"], rates[1]["reward_model"]["lr"], rates[2]["ppo"]["lr"]] == [8e-3, 2e-3, 1.5e-3]


def test_a_student_that_exists_is_trained(call, inputs, finished, tmp_path, capsys):
    # teacher and student come from one job, so they have one tokenizer
    student = finished / "sft"
    argv = ["--data", inputs / "pairs.jsonl", "--policy", finished / "ppo", "--student", student]
    call("distillation", tmp_path, *argv, "--output", tmp_path / "job")
    before, after = (load_policy(folder / "model") for folder in (student, tmp_path / "job" / "distillation"))
    assert before.transformer.config == after.transformer.config
    moved = [(p - q).abs().max() for p, q in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1  # three steps away from the folder's weights
    call("sft", tmp_path, "--vocab_size", "270", "--data", inputs / "pairs.jsonl", "--output", tmp_path / "other")
    for wrong, text in [
        (
            ["--student", tmp_path / "other" / "sft"],
            "the student's tokenizer must be the teacher's, but id 270 differs",
        ),
        (["--student", student, "--student_width", "8"], "--student is a trained model already; drop both"),
        (["--student", tmp_path / "nothing"], "nothing"),
    ]:
        with pytest.raises(SystemExit) as stop:
            call("distillation", tmp_path, *argv[:4], *wrong, "--output", tmp_path / "refused")
        assert stop.value.code == 2 and text in capsys.readouterr().err
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("program", "train"), [("sft", "all"), ("sft", "lora"), ("ppo", "qlora"), ("grpo", "all")])
def test_turns_are_written_by_the_folders_chat_template(call, folder_of, tmp_path, inputs, program, train):
    folder = folder_of("qwen3")
    Tokenizer.load(folder).with_template("zephyr").save(folder)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}], "chosen": f"{n} good", "rejected": f"{n} bad"}
        for n in range(40)
    ]
    data = tmp_path / "turns.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "job"
    call(program, tmp_path, "--policy", folder, "--data", data, "--output", output, "--train", train)
    written = Tokenizer.load(output / program / "model")
    assert written.apply_chat_template(rows[0]["messages"], True) == "<|user|>\n0?<|eos|>\n<|assistant|>\n"
    if program == "sft":  # teacher-forced loss on the answers in the template's ids, the first step's, worked out here
        lines = [json.loads(line) for line in (output / "sft" / "metrics.jsonl").read_text().splitlines()]
        model, tokenizer = load_policy(folder, dtype=torch.float32), Tokenizer.load(folder)
        task = task_from_rows(read_rows(data))
        encoded = encode_rows(tokenizer, task.sft, ("response",), context=96).rows
        batch = Batches(encoded, batch_size=8, steps=4, seed=0, stream="sft")[0]
        total, count = 0.0, 0
        for draw in batch:
            prompt, (answer,) = tokenizer.encode_turns(draw.row.source["prompt_turns"], [draw.row.source["response"]])
            ids = torch.tensor([[*prompt, *answer]])
            total -= model(ids, torch.ones_like(ids, dtype=torch.bool)).logps[0, len(prompt) :].sum().item()
            count += len(answer)
        assert lines[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_patterns_freeze_what_they_name_and_a_pattern_that_names_nothing_is_refused(
    call, folder_of, inputs, tmp_path, capsys
):
    folder = folder_of("qwen3")
    call("dpo", tmp_path, *flags(folder, inputs, tmp_path, "--freeze", "model.embed_tokens,layers.0"))
    before, after = load_pretrained(folder), load_pretrained(tmp_path / "job" / "dpo" / "model")
    for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(p, q) == (".layers.0." in name or "embed_tokens" in name), name
    assert "numbers are trained" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        call("dpo", tmp_path, *flags(folder, inputs, tmp_path / "other", "--freeze", "layers.9"))
    assert stop.value.code == 2 and "pattern 'layers.9' fits no parameter" in capsys.readouterr().err


@pytest.mark.parametrize(("train", "stays"), [("lora", True), ("qlora", True), ("all", False)])
def test_frozen_weights_of_half_precision_stay_so_where_the_job_computes_in_it(
    call, folder_of, inputs, tmp_path, train, stays
):
    folder = folder_of("qwen3")
    save_pretrained(load_pretrained(folder, torch.bfloat16), folder, Tokenizer.load(folder).token_ids)
    call("ppo", tmp_path, *flags(folder, inputs, tmp_path, "--train", train, "--precision", "bf16"))
    embedding = load_pretrained(tmp_path / "job" / "ppo" / "model").model.embed_tokens.weight
    assert embedding.dtype == (torch.bfloat16 if stays else torch.float32)
    files = sorted((tmp_path / "job" / "ppo" / "checkpoints").glob("*/policy/*.safetensors"))
    if stays:  # what is trained, the value head too, is in fp32
        tensors = load_file(files[-1])
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert any("value_head" in name for name in tensors)


def test_dropout_of_a_step_is_the_same_whenever_the_step_is_taken(call, folder_of, inputs, tmp_path):
    folder = folder_of("qwen3")
    train = ["--train", "lora", "--lora.dropout", "0.5", "--run.save_every", "1", "--run.keep", "9"]
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
        call("sft", tmp_path, *flags(folder, inputs, tmp_path / name, *train))
    run = tmp_path / "halves" / "job" / "sft"
    for gone in ("model", "adapter", "checkpoints/step-3", "checkpoints/step-4"):
        shutil.rmtree(run / gone)
    call("sft", tmp_path, *flags(folder, inputs, tmp_path / "halves", *train, "--resume"))
    one, two = (load_file(tmp_path / n / "job/sft/adapter/adapter_model.safetensors") for n in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    plain = tmp_path / "plain"
    plain.mkdir()
    call("sft", tmp_path, *flags(folder, inputs, plain, *train[:2]))
    other = load_file(plain / "job/sft/adapter/adapter_model.safetensors")
    assert not all(torch.equal(one[name], other[name]) for name in one)  # it does act


def test_a_finished_reward_stage_is_put_back_on_its_base(call, folder_of, inputs, tmp_path):
    folder = folder_of("qwen3")
    train = ["--train", "qlora", "--lora.r", "2"]
    call("ppo", tmp_path, *flags(folder, inputs, tmp_path, *train))
    first = json.loads((tmp_path / "job" / "summary.json").read_text())
    shutil.rmtree(tmp_path / "job" / "ppo")
    call("ppo", tmp_path, *flags(folder, inputs, tmp_path, *train, "--resume"))
    again = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert first.pop("seconds") >= 0 and again.pop("seconds") >= 0 and first == again


@pytest.mark.parametrize(
    ("program", "words", "text"),
    [
        ("sft", ["--train", "lora"], "--train lora: needs a trained model, this program starts from random weights"),
        ("reward_model", ["--freeze", "layers.0"], "--freeze layers.0: needs a trained model"),
        ("process_reward", ["--train", "qlora"], "--train qlora: needs a trained model"),
        ("dpo", ["--policy", "DIR", "--freeze", "*"], "--freeze *: no parameter is left to train; freeze fewer"),
        (
            "dpo",
            ["--policy", "DIR", "--train", "lora", "--freeze", "x"],
            "--freeze: --train lora freezes all but adapters",
        ),
        ("dpo", ["--policy", "DIR", "--train", "lora", "--lora.target_modules", "query"], "'query' fits no Linear"),
        ("dpo", ["--policy", "DIR", "--train", "lora", "--dpo.ref_update_every", "1"], "ref_update_mix must be 1"),
        ("dpo", ["--policy", "DIR", "--lora.r", "4"], "--lora.r: all weights are trained; give --train lora"),
        (
            "dpo",
            ["--template", "zephyr"],
            "--template: needs a model folder; give --policy",
        ),
        ("ppo", ["--reward", "DIR", "--stop_after", "reward"], "--stop-after reward would do nothing; drop one"),
    ],
)
def test_settings_that_could_not_act_are_refused(call, folder_of, inputs, tmp_path, capsys, program, words, text):
    words = [folder_of("qwen3") if word == "DIR" else word for word in words]
    with pytest.raises(SystemExit) as stop:
        call(
            program,
            tmp_path,
            *words,
            "--output",
            tmp_path / "job",
            *([] if program == "process_reward" else ["--data", inputs / "pairs.jsonl"]),
        )
    assert stop.value.code == 2 and text in capsys.readouterr().err


def test_settings_of_a_new_model_are_said_not_to_be_read(call, folder_of, inputs, tmp_path, capsys):
    folder = folder_of("qwen3")
    call("sft", tmp_path, *flags(folder, inputs, tmp_path))
    assert f"not read, because {folder} has its own: model.hidden_size, " in capsys.readouterr().out


def test_what_a_reward_model_has_not_is_not_frozen_there(call, folder_of, inputs, tmp_path):
    folder = folder_of("qwen3")  # its head is its own, the reward model has none
    call("ppo", tmp_path, *flags(folder, inputs, tmp_path, "--freeze", "lm_head"))
    before, after = load_pretrained(folder), load_pretrained(tmp_path / "job" / "ppo" / "model")
    assert torch.equal(before.head_weight, after.head_weight)
    assert not torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)


def test_sampling_defaults_of_the_checkpoint_are_kept(call, folder_of, inputs, tmp_path):
    folder = folder_of("qwen3")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "eos_token_id": [2, 0]}))
    call("sft", tmp_path, *flags(folder, inputs, tmp_path))
    kept = json.loads((tmp_path / "job" / "sft" / "model" / "generation_config.json").read_text())
    assert kept == json.loads(path.read_text())


def test_a_folder_that_pads_with_its_end_token_is_trained_to_end_its_answers(call, folder_of, inputs, tmp_path):
    folder = folder_of("qwen3")
    metrics = []
    for pad in ("<|pad|>", "<|eos|>"):
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": pad}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        call("sft", tmp_path, "--policy", folder, "--data", inputs / "pairs.jsonl", "--output", tmp_path / pad)
        lines = (tmp_path / pad / "sft" / "metrics.jsonl").read_text().splitlines()
        metrics.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    assert metrics[0] == metrics[1] and len(metrics[0]) > 1
    written = json.loads((tmp_path / "<|eos|>" / "sft" / "model" / "tokenizer_config.json").read_text())
    assert written["pad_token"] == "<|pad|>"  # a tool that masks by the id would leave the ends of answers out


def test_template_variables_act_in_training_and_are_the_same_after_resuming(call, folder_of, tmp_path, capsys):
    folder = folder_of("qwen3")
    template = "{% for m in messages %}{{ m.content }}{{ '#' if short }}{{ eos_token }}{% endfor %}"
    Tokenizer.load(folder).with_template(template).save(folder)
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(40)]
    data = tmp_path / "turns.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    words = ["sft", tmp_path, "--policy", folder, "--data", data, "--output", tmp_path / "job"]
    call(*words, "--template_variables", '{"short": true}')
    written = Tokenizer.load(tmp_path / "job" / "sft" / "model")
    assert written.apply_chat_template(rows[0][:1]) == "0?#<|eos|>"
    call(*words, "--template_variables", '{"short": true}', "--resume")
    for value, text in (
        ('{"short": false}', "holds another run"),
        ('{"shot": 1}', "does not read 'shot'; it reads short"),
    ):
        with pytest.raises(SystemExit):
            call(*words, "--template_variables", value, "--resume")
        assert text in capsys.readouterr().err


def test_a_folder_without_a_chat_template_is_given_one(call, folder_of, tmp_path):
    folder, data = folder_of("qwen3"), tmp_path / "turns.jsonl"
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(40)]
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    call("sft", tmp_path, "--policy", folder, "--data", data, "--output", tmp_path / "job", "--template", "zephyr")
    written = Tokenizer.load(tmp_path / "job" / "sft" / "model")
    assert written.apply_chat_template(rows[0][:1], True) == "<|user|>\n0?<|eos|>\n<|assistant|>\n"


def test_a_reward_model_that_cannot_read_the_prompts_is_refused_before_anything_is_trained(
    call, finished, folder_of, tmp_path, capsys
):
    reward, data = tmp_path / "reward", tmp_path / "turns.jsonl"
    shutil.copytree(finished / "reward" / "model", reward)
    picky = "{% for m in messages %}{% if m.content == '7?' %}{{ raise_exception('no') }}{% endif %}x{% endfor %}"
    Tokenizer.load(reward).with_template(picky).save(reward)
    (reward / "manifest.json").unlink()
    turns = [[{"role": "user", "content": f"{n}?"}] for n in range(40)]
    data.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in turns))
    with pytest.raises(SystemExit) as stop:
        call("grpo", tmp_path, "--policy", folder_of("qwen3"), "--data", data, "--reward", reward)
    assert stop.value.code == 2
    found = capsys.readouterr().err
    assert f"{reward}: this reward model's chat template refuses 1 of 40 prompts, such as line 8 (" in found


def test_a_reward_model_whose_template_leaves_answers_out_is_refused_before_anything_is_trained(
    call, finished, folder_of, tmp_path, capsys
):
    reward, data = tmp_path / "reward", tmp_path / "turns.jsonl"
    shutil.copytree(finished / "reward" / "model", reward)
    Tokenizer.load(reward).with_template("{% for m in messages %}x{% endfor %}").save(reward)
    (reward / "manifest.json").unlink()
    turns = [[{"role": "user", "content": f"{n}?"}] for n in range(40)]
    data.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in turns))
    with pytest.raises(SystemExit) as stop:
        call("grpo", tmp_path, "--policy", folder_of("qwen3"), "--data", data, "--reward", reward)
    assert stop.value.code == 2
    assert "this reward model's chat template refuses 40 of 40 answers to prompts" in capsys.readouterr().err


def test_the_folder_of_a_pipeline_stands_for_its_last_policy(call, finished, inputs, tmp_path):
    call("sft", tmp_path, *flags(finished, inputs, tmp_path), "--train", "lora")
    (config,) = (tmp_path / "job" / "sft" / "adapter").glob("adapter_config.json")
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(finished / "ppo" / "model")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("only", "did you mean "),
        ("nowhere", "OWNER/NAME names a model of the hub only if no folder OWNER is here"),
        ("lora", "minirlhf adapter merge"),
    ],
)
def test_what_is_no_models_folder_is_told_with_what_was_meant(
    call, finished, folder_of, inputs, tmp_path, capsys, place, text
):
    wrong = finished / place
    if place == "only":  # a pipeline without a policy
        wrong = tmp_path / "only"
        shutil.copytree(finished / "reward", wrong / "reward")
    if place == "lora":
        wrong = tmp_path / "lora"
        save_adapter(apply_lora(load_pretrained(folder_of("qwen3")), LoRAConfig(r=1)), wrong)
    with pytest.raises(SystemExit) as stop:
        call("sft", tmp_path, *flags(wrong, inputs, tmp_path))
    assert stop.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.parametrize("train", ["all", "lora", "qlora"])
def test_a_half_precision_folder_is_written_back_in_the_type_that_training_kept(
    call, folder_of, inputs, tmp_path, capsys, train
):
    """Adapters are merged into the base's own type. All weights are trained in fp32 and stay fp32."""
    folder = folder_of("qwen3")
    save_pretrained(load_pretrained(folder).bfloat16(), folder, Tokenizer.load(folder).token_ids)
    words = flags(folder, inputs, tmp_path, "--train", train)
    call("dpo", tmp_path, *words)
    model = tmp_path / "job" / "dpo" / "model"
    dtype = torch.float32 if train == "all" else torch.bfloat16
    assert {w.dtype for w in load_file(model / "model.safetensors").values()} == {dtype}
    assert json.loads((model / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    said = capsys.readouterr().out
    assert ("in float32, " if train == "all" else "in bfloat16, ") in said and "final model: " in said
    call("dpo", tmp_path, *words, "--resume")  # the finished stage is read in the type in which the job computes
    assert "nan" not in capsys.readouterr().out
