"""Opening a job, and the stages of a program that is written in ten lines."""

import json

import pytest
import torch

from minirlhf.algorithms import DPOConfig, DPOTrainer, PPOConfig, RewardConfig, SFTConfig
from minirlhf.errors import InputError
from minirlhf.jobs import Job, JobConfig, open_stage
from minirlhf.jobs.checks import plan
from minirlhf.jobs.job import Stopped
from minirlhf.jobs.settings import PipelineConfig
from minirlhf.model import ModelConfig
from minirlhf.tasks import Task
from minirlhf.training import RunSettings

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"intermediate_size": 24, "max_position_embeddings": 96}


def tiny_task(job):
    rows = [{"prompt": f"{n}?", "chosen": f"{n} yes", "rejected": "no"} for n in range(20)]
    sft = [{**row, "response": row["chosen"]} for row in rows]
    return Task("tiny", sft, rows, rows, sft[:4], rows[:4], rows[:4])


@pytest.fixture
def job(tmp_path):
    """job(**settings of the job): a DPO job on 20 rows, in one folder."""

    def make(**common):
        settings = {
            "job": PipelineConfig(output=str(tmp_path / "job"), vocab_size=280, **common),
            "model": ModelConfig(**SHAPE),
            "sft": SFTConfig(steps=2, batch_size=4),
            "dpo": DPOConfig(steps=2, batch_size=4),
            "run": RunSettings(eval_every=0, save_every=0),
        }
        return Job.make("dpo", "dpo", settings, torch.device("cpu"), tiny_task)

    return make


def test_the_stages_of_a_job_are_trained_once_and_loaded_again_on_resume(job, tmp_path):
    first = job()
    stage = first.stage(first.policy(), "pairs")
    assert stage.finished is None and (len(stage.rows), len(stage.held_out), len(stage.prompts)) == (20, 4, 4)
    before = stage.evaluate(stage.reference)
    trainer = DPOTrainer(stage.policy, stage.reference, first.tokenizer, first.config, updates=2)
    run = stage.train_on(trainer)
    for batch in run:
        run.record(trainer.step(batch))
    after = stage.evaluate(stage.policy)
    first.report("DPO", before, after)
    assert json.loads((tmp_path / "job" / "summary.json").read_text())["after"]["length"] == after.measures["length"]

    again = job(resume=True)
    stage_again = again.stage(again.policy(), "pairs")
    assert stage_again.finished == tmp_path / "job" / "dpo" / "model"
    assert stage_again.evaluate(stage_again.reference).completions == before.completions
    assert stage_again.evaluate(stage_again.policy).completions == after.completions


def test_evaluations_of_a_stage_repeat_their_noise_and_take_as_many_prompts_as_asked(job):
    opened = job()
    stage = opened.stage(opened.policy(), "pairs")
    one, two = stage.evaluate(stage.policy), stage.evaluate(stage.policy)
    assert one.completions == two.completions
    assert len(stage.evaluate(stage.policy, prompts=3).completions) == 3
    assert stage.evaluate(stage.policy, greedy=True).measures["kl"] is None


def test_a_stage_that_was_finished_with_other_settings_is_refused(job):
    opened = job()
    opened.policy()
    other = job(resume=True)
    other.settings["sft"] = SFTConfig(steps=3, batch_size=4)
    with pytest.raises(InputError, match="it began with 'steps = 2', but the settings now say 'steps = 3'"):
        open_stage(other, "sft", "sft")


def test_the_batches_of_a_stage_last_as_long_as_its_settings_say(job):
    opened = job()
    stage = open_stage(opened, "sft", "sft")
    assert [len(stage.batches(list(range(20)))), len(stage.batches(list(range(20)), times=3))] == [2, 6]
    # 1 row and at most 4 epochs of batches of 4 rows: 1 step
    assert len(stage.batches([0])) == 1
    one, other = stage.batches(list(range(20))), stage.batches(list(range(20)), "another shuffle")
    assert [draw.index for draw in one[0]] != [draw.index for draw in other[0]]


@pytest.mark.parametrize(
    ("given", "checked", "stages"),
    [
        ({}, False, "sft -> reward -> ppo"),
        ({"stop_after": "reward"}, False, "sft -> reward"),
        ({"stop_after": "sft"}, False, "sft"),
        ({"policy": "DIR"}, False, "reward -> ppo"),
        ({"reward": "DIR"}, False, "sft -> ppo"),
        ({"policy": "DIR", "reward": "DIR"}, False, "ppo"),
        ({}, True, "sft -> ppo"),  # the task checks answers
    ],
)
def test_the_start_names_the_stages_that_will_run(given, checked, stages):
    task = Task("tiny", [], [], [], [], [], [], reward=(lambda *_: []) if checked else None)
    reward = task.reward or given.get("reward")  # at its start a job loads the reward of `--reward`
    job = Job("ppo", {"job": PipelineConfig(**given)}, "runs/x", task, None, torch.device("cpu"), 0.0, reward)
    assert plan(job, "ppo", ("sft", "reward")) == stages


def test_stop_after_ends_a_job_behind_its_stage(job):
    with pytest.raises(Stopped, match="sft"):
        job(stop_after="sft").policy()


def test_a_task_without_the_rows_that_a_program_needs_is_refused_before_anything_is_written(tmp_path):
    settings = {"job": JobConfig(output=str(tmp_path / "job")), "reward_model": RewardConfig(), "ppo": PPOConfig()}
    prompts = lambda job: Task("mine", [], [], [{"prompt": "a"}], [], [], [{"prompt": "b"}])  # noqa: E731
    with pytest.raises(InputError, match="mine: training on pairs needs rows"):
        Job.make("ppo", "ppo", settings, torch.device("cpu"), prompts, after=("sft", "reward"))
    assert list(tmp_path.iterdir()) == []
