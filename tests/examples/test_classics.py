"""The classic examples, with sizes that take a second: sentiment, detoxify, llama."""

import json
import shutil

import pytest
import torch

from minirlhf.jobs import opened, stage
from minirlhf.model import load_adapter, load_pretrained

from .conftest import small_task

FEW = ["--rows", "100", "--run.eval_every", "0", "--run.save_every", "0"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(opened, "embedded_task", small_task)
    monkeypatch.setattr(stage, "EVALUATION_PROMPTS", 8)


def found(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("program", ["sentiment", pytest.param("detoxify", marks=pytest.mark.slow)])
def test_it_trains_and_is_read_again_when_resumed(call, tmp_path, program):
    argv = [*FEW, "--output", tmp_path / "job"]
    call(program, tmp_path, *argv)
    first = found(tmp_path / "job")
    assert 0 <= first["classifier_accuracy"] <= 1 and isinstance(first["after"]["gold_reward"], float)
    assert ("rude_after" in first) == (program == "detoxify")
    score = (tmp_path / "job" / "reward" / "model" / "config.json").read_text()
    assert "ForSequenceClassification" in score  # other programs take the folder as --reward
    call(program, tmp_path, *argv, "--resume")
    for part in ("before", "after"):
        # weights that are read from a file lie elsewhere in memory, and that may change the last digit of a score
        assert found(tmp_path / "job")[part] == pytest.approx(first[part], abs=1e-6)


@pytest.fixture
def reviews(tmp_path):
    """A folder as people have it: reviews.pos and reviews.neg, a text in each line."""
    (tmp_path / "reviews").mkdir()
    for name, word in (("pos", "fine"), ("neg", "dull")):
        lines = [f"the film {i} is {word} , and so is its end .\n" for i in range(30)]
        (tmp_path / "reviews" / f"reviews.{name}").write_text("".join(lines))
    return tmp_path / "reviews"


def test_it_reads_a_folder_of_texts_and_takes_given_models(call, finished, reviews, tmp_path, capsys):
    models = ["--policy", finished / "sft", "--output", tmp_path / "job"]
    call("detoxify", tmp_path, *FEW[2:], "--data", reviews, *models)
    out = capsys.readouterr().out
    assert "text rows from {text}, 60 kept, 0 refused" in out and "classifier accuracy: " in out
    assert found(tmp_path / "job")["after"]["gold_reward"] is None and "rude" not in out.split("evaluating")[1]
    samples = [json.loads(line) for line in (tmp_path / "job/ppo/samples.jsonl").read_text().splitlines()]
    assert all(sample["prompt"].startswith("the film") for sample in samples)
    shutil.rmtree(tmp_path / "job")
    (reviews / "reviews.neg").unlink()  # the reward is given, so no classifier needs both labels
    call("detoxify", tmp_path, *FEW[2:], "--data", reviews / "reviews.pos", *models, "--reward", finished / "reward")
    assert "classifier accuracy" not in capsys.readouterr().out


@pytest.fixture
def refusal(call, tmp_path, capsys):
    """refusal(program, *argv): the text after "error: "; no folder is made."""

    def refusal(program, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(program, tmp_path, *argv)
        lines = capsys.readouterr().err.splitlines()
        assert (caught.value.code, len(lines)) == (2, 1) and not (tmp_path / "runs").exists()
        return lines[0].removeprefix("error: ")

    return refusal


def test_texts_without_labels_of_one_label_or_none_at_all_are_refused(refusal, reviews, tmp_path):
    positive = reviews / "reviews.pos"
    assert "needed texts of both labels, all 30 have the label good; add others" in refusal(
        "sentiment", "--held_out", "0", "--data", positive
    )
    plain = tmp_path / "texts.txt"
    shutil.copy(positive, plain)
    assert f"{plain}: needed one label for these texts" in refusal("sentiment", "--data", plain)
    (tmp_path / "empty").mkdir()
    assert "empty: needed a folder with data files" in refusal("detoxify", "--data", tmp_path / "empty")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n' * 4)
    text = refusal("detoxify", "--data", rows)
    assert text.startswith(f"{rows}: training on single answers needs rows {{prompt, response, label}}, but the task")
    rows.write_text('{"text": "a b c d", "label": "maybe"}\n')
    assert "label: needed true or false" in refusal("detoxify", "--data", rows)
    assert refusal("sentiment", "--task", "reviews-").startswith("--task: this program has a task of its own")
    assert refusal("sentiment", "--rows", "200", "--data", positive).startswith("--rows: the embedded task has this")
    assert refusal("detoxify", "--prompt_words", "4").startswith("--prompt_words: the texts of this task have prompts")
    text = refusal("sentiment", "--reward_model.center_coef", "0.1")
    assert text == "--reward_model.center_coef: labels fix the zero of a classifier's scores; drop the flag"


def test_a_folder_that_is_no_llama_is_refused(refusal, finished, inputs, tmp_path):
    data = ["--data", inputs / "pairs.jsonl"]
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal("llama", *data, "--policy", tmp_path / "empty")
    text = refusal("llama", *data, "--policy", finished / "reward")
    assert "needed a" in text and "RewardModel" in text
    text = refusal("llama", *data, "--policy", finished / "sft", "--base_steps", "3")
    assert text == "--base_steps: --policy is a trained base already; drop one of the two"
    text = refusal("llama", *data, "--policy", finished / "sft", "--train", "all")
    assert "lora" in text


def votes(folder):
    """Rows of questions with answers and votes."""
    answers = [{"text": f"it is {word}", "votes": n} for n, word in enumerate(["red", "blue", "good"])]
    rows = [{"question": f"what is {i}?", "answers": answers} for i in range(40)]
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "votes.jsonl"


def test_the_journey_of_a_llama_ends_in_a_plain_folder_with_the_function_of_its_adapters(call, finished, tmp_path):
    """Each adapter names the model that it stands on, and the merged folder computes the model with its adapter."""
    job, base = tmp_path / "job", finished / "sft" / "model"
    argv = ["--policy", base, "--data", votes(tmp_path), "--lora.r", "2", "--output", job]
    call("llama", tmp_path, *argv)
    ids = torch.arange(3, 40)[None]
    for stage_name, below in (("sft", base), ("ppo", job / "sft" / "model")):
        adapter = job / stage_name / "adapter"
        named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(below)
        model, merged = load_pretrained(below), load_pretrained(job / stage_name / "model")
        before = model(ids).detach()
        load_adapter(model, adapter)
        with torch.no_grad():
            torch.testing.assert_close(merged(ids), model(ids), rtol=0, atol=1e-5)
        assert not torch.allclose(merged(ids), before, atol=1e-4)
        assert "LlamaForCausalLM" in (job / stage_name / "model" / "config.json").read_text()
    reward = json.loads((job / "reward" / "adapter" / "adapter_config.json").read_text())
    assert reward["base_model_name_or_path"] == str(job / "sft" / "model")
    first = found(job)
    call("llama", tmp_path, *argv, "--resume")
    assert {**found(job), "seconds": 0} == {**first, "seconds": 0}


def test_without_a_policy_a_llama_is_made_first(call, tmp_path):
    job = tmp_path / "job"
    call("llama", tmp_path, *FEW[2:], "--base_steps", "3", "--lora.r", "2", "--output", job)
    base = job / "base" / "sft" / "model"
    adapter = json.loads((job / "sft" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base) and base.exists()
    assert isinstance(found(job)["after"]["gold_reward"], float)
