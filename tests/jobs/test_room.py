"""Rows that do not fit: training rows are refused before the first stage, held-out rows are left out and named."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    SFTConfig,
    UnpairedConfig,
    UnpairedTrainer,
)
from minirlhf.algorithms.unpaired import single_rows
from minirlhf.errors import InputError
from minirlhf.jobs import Job
from minirlhf.jobs.data_flags import with_data_flags
from minirlhf.jobs.settings import PipelineConfig
from minirlhf.model import ModelConfig
from minirlhf.tasks import Task
from minirlhf.training import RunSettings

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
CONTEXT = 96
ON_POLICY = {"steps": 1, "batch_size": 4, "minibatch_size": 4}
CONFIGS = {
    "ppo": PPOConfig(**ON_POLICY, max_tokens=20),
    "grpo": GRPOConfig(**ON_POLICY, max_tokens=20, group_size=2),
    "online_dpo": OnlineDPOConfig(**ON_POLICY, max_tokens=20),
    "dpo": DPOConfig(steps=1, batch_size=4),
    "unpaired": UnpairedConfig(steps=1, batch_size=4),
}


def rows(lengths):
    """Pairs whose prompts have this many tokens, BOS included: a token is a byte."""
    texts = [chr(97 + i % 16) + "q" * (n - 2) for i, n in enumerate(lengths)]
    return [{"prompt": text, "chosen": f"yes {i}", "rejected": "no"} for i, text in enumerate(texts)]


def task_of(training, held_out, prompts=None):
    def task(job):
        learned, looked_at = ([{**row, "response": row["chosen"]} for row in part] for part in (training, held_out))
        return Task("mine", learned, training, prompts or training, looked_at, held_out, held_out)

    return task


@pytest.fixture
def make(tmp_path):
    """make(name, task, after, needs): a job of one of CONFIGS in the folder `job`."""

    def make(name, task, after=("sft",), needs=(), **common):
        settings = {
            "job": with_data_flags(PipelineConfig)(output=str(tmp_path / "job"), vocab_size=259, **common),
            "model": ModelConfig(**SHAPE, intermediate_size=24, max_position_embeddings=CONTEXT),
            "sft": SFTConfig(steps=2, batch_size=4),
            "reward_model": RewardConfig(steps=2, batch_size=4),
            name: CONFIGS[name],
            "run": RunSettings(eval_every=1, save_every=0),
        }
        return Job.make(name, name, settings, torch.device("cpu"), task, needs, after)

    return make


def train(job, base, reward=None):
    """The program's own stage, to its report. The rows of KTO are single answers."""
    if job.section == "unpaired":
        pairs = job.rows("pairs", base.transformer.config)
        stage = job.stage(base, "pairs", tuple(single_rows(part, CONTEXT) for part in pairs))
        make = lambda: UnpairedTrainer(stage.policy, stage.reference, job.tokenizer, job.config, 1)  # noqa: E731
    elif job.section == "dpo":
        stage = job.stage(base, "pairs")
        make = lambda: DPOTrainer(stage.policy, stage.reference, job.tokenizer, job.config, 1)  # noqa: E731
    else:
        stage = job.stage(base, reward=reward, values=True)
        make = lambda: PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config)  # noqa: E731
    before = stage.evaluate(stage.reference)
    trainer = make()
    run = stage.train_on(trainer)
    for batch in run:
        run.record(trainer.step(batch))
    job.report(job.section, before, stage.evaluate(stage.policy))
    return stage, json.loads((job.folder / "summary.json").read_text())


@pytest.mark.parametrize("name", ["dpo", "unpaired"])
def test_no_row_is_refused_for_the_sake_of_an_evaluation(make, name):
    # every prompt leaves fewer than the 48 tokens of an evaluation
    job = make(name, task_of(rows([80, 90, 70, 91] * 3), rows([90, 60, 92])), needs=("pairs",))
    stage, summary = train(job, job.policy())
    assert len(stage.rows) == (12 if name == "dpo" else 24) and len(stage.prompts) == 3
    assert 0 < summary["after"]["length"] <= (6 + 36 + 4) / 3  # the room of each prompt


@pytest.mark.parametrize("name", ["ppo", "grpo", "online_dpo"])
def test_prompts_without_room_for_max_tokens_are_refused_before_the_first_stage(make, tmp_path, name):
    # SFT and the reward model can use these rows; sampling of 20 tokens cannot
    with pytest.raises(InputError, match="4 of 12 rows cannot be used, .* leaves 16 of the context's 96, needed 20;"):
        make(name, task_of(rows([80, 30, 40] * 4), rows([30] * 4)), after=("sft", "reward"))
    assert not (tmp_path / "job" / "sft").exists()


def test_pairs_that_do_not_fit_are_refused_before_the_first_stage(make, tmp_path):
    # the prompts are fine
    with pytest.raises(InputError, match="1 of 12 rows cannot be used, .* leaves 0 of the context's 96, needed 1;"):
        pairs = task_of(rows([120] + [30] * 11), rows([30]), prompts=rows([30] * 4))
        make("ppo", pairs, after=("sft", "reward"))
    assert not (tmp_path / "job" / "sft").exists()


def test_rows_that_are_all_refused_end_the_job_before_the_first_stage(make, tmp_path):
    with pytest.raises(InputError, match="^mine: needed pairs to train on, all rows are refused: mine: 'aqq"):
        make("dpo", task_of(rows([97, 120]), rows([30])), needs=("pairs",), max_refused=1.0)
    assert not (tmp_path / "job" / "sft").exists()


def test_rows_that_were_checked_are_encoded_once_and_not_kept(make, capsys):
    job = make("ppo", task_of(rows([30] * 8), rows([30] * 2)), after=("sft", "reward"))
    config = replace(job.settings["model"], vocab_size=job.tokenizer.vocab_size)
    printed = capsys.readouterr().out
    pairs, prompts = job.rows("pairs", config), job.rows("prompts", config, reserve=20)
    assert [len(part) for part in (*pairs, *prompts)] == [8, 2, 8, 2]
    assert printed.count("in ids") == 3 and "in ids" not in capsys.readouterr().out
    assert [part for part, *_ in job.encoded] == ["sft"]  # the first stage takes it
    assert job.rows("prompts", config, reserve=1)[0] == prompts[0]  # another reserve is another check
    assert "prompts in ids" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dpo", "unpaired", "ppo"])
@pytest.mark.parametrize("lengths", [[], [96, 200]], ids=["none", "too long"])
def test_a_job_without_held_out_rows_runs_to_its_end_and_says_so(make, capsys, name, lengths):
    after = ("sft", "reward") if name == "ppo" else ("sft",)
    job = make(name, task_of(rows([30] * 8), rows(lengths)), after=after, needs=("pairs",))
    base = job.policy()
    reward, accuracy = job.reward(base) if name == "ppo" else (None, None)
    stage, summary = train(job, base, reward)
    assert accuracy is None and stage.prompts == [] and set(summary["after"].values()) == {None}
    out = capsys.readouterr().out
    assert "mine: held-out pairs: 0 kept, 0 truncated, " in out and "so nothing is evaluated on them" in out
    metrics = (job.folder / name / "metrics.jsonl").read_text()
    assert "loss" in metrics and "eval/" not in metrics and "NaN" not in metrics


def test_held_out_rows_that_do_not_fit_are_left_out_and_named(make, capsys):
    job = make("ppo", task_of(rows([30] * 8), rows([30, 96, 90])), after=("sft", "reward"))
    out = capsys.readouterr().out
    assert "mine: held-out prompts: 2 kept, 0 truncated, 1 refused\nmine: 'bqqq" in out
    config = replace(job.settings["model"], vocab_size=job.tokenizer.vocab_size)
    assert [len(row.prompt) for row in job.rows("prompts", config, reserve=20)[1]] == [30, 90]


def test_flags_about_rows_without_an_effect_are_named(make, capsys, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows([30] * 8)))

    def said(name, after=("sft",), **flags):
        job = make(name, None, after, data=str(file), **flags)
        shutil.rmtree(job.folder)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("not read")]

    no_template = "not read, because the tokenizer has no chat template: wrap"
    assert said("dpo", train_on="last", wrap="plain") == [no_template]  # SFT reads train_on
    assert said("dpo", after=(), train_on="last") == ["not read, because no such stage is trained: train_on"]
    assert said("dpo", train_on="all_turns", wrap="turns") == []
