"""--environment: a class of a user's file is tried before training, and its errors name his line."""

import dataclasses
from pathlib import Path

import pytest
import torch

from minirlhf.algorithms import DPOConfig, PPOConfig
from minirlhf.cli.train import PROGRAMS
from minirlhf.environments import Episodes
from minirlhf.errors import InputError
from minirlhf.jobs.checks import stages_of, with_given_reward
from minirlhf.jobs.environment_flags import with_environment_flags
from minirlhf.jobs.environments import with_environment
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.plan import step_of
from minirlhf.jobs.settings import PipelineConfig, sections, stage_settings
from minirlhf.model import ModelConfig
from minirlhf.tasks.task import Task
from minirlhf.text import Tokenizer

# The trainers of the other programs get no environment, so the flag would be ignored.
PLAYING = {"ppo", "grpo", "tools", "game", "online_dpo"}
SHAPE = ModelConfig(vocab_size=300, max_position_embeddings=64)
PROGRAM = '''
class Game:
    """Repeats the policy's words."""

    def reset(self, row):
        return row["prompt"]

    def step(self, action):
        return action, 1.0, True


class Broken(Game):
    def step(self, action):
        return action[99], 1.0, True


def lengths(prompts, completions, rows):
    return [float(len(row["turns"])) for row in rows]
'''


@pytest.fixture
def job(tmp_path):
    """job(environment="NAME", ...): a job of PPO with these flags."""
    (tmp_path / "game.py").write_text(PROGRAM)
    rows = [{"prompt": f"p{i}", "number": i} for i in range(3)]
    empty = ("sft", "pairs", "held_out_sft", "held_out_pairs")
    task = Task("rows", prompts=rows, held_out_prompts=rows, **{part: [] for part in empty})
    tokenizer = Tokenizer.train(["some words"], 300)

    def job(task=task, reward=None, **flags):
        if "environment" in flags:
            flags["environment"] = f"{tmp_path}/{flags['environment']}"
        reward = reward and f"{tmp_path}/{reward}"
        settings = {"job": with_environment_flags(PipelineConfig, "ppo")(reward=reward, **flags)}
        return Opened("ppo", settings | {"ppo": None}, Path("runs"), task, tokenizer, torch.device("cpu"), 0.0)

    return job


def test_the_environment_replaces_the_reward_model_and_adds_to_a_given_reward(job):
    plain = with_environment(job(environment="game.py:Game", max_turns=3, max_tool_tokens=5), lambda job: SHAPE)
    assert isinstance(plain.environment, Episodes)
    assert (plain.environment.max_turns, plain.environment.max_tool_tokens) == (3, 5)
    assert with_given_reward(plain, ("sft", "reward")).given_reward is None
    assert stages_of(plain, ("sft", "reward")) == ["sft"]
    both = with_environment(job(environment="game.py:Game", reward="game.py:lengths"), lambda job: SHAPE)
    given = with_given_reward(both, ("sft", "reward")).given_reward  # tried on rows that have turns
    assert given(["p"], ["c"], [{"turns": [1, 2]}]) == [2.0]


def test_a_task_may_have_an_environment_of_its_own(job):
    task = dataclasses.replace(job().task, environment=lambda tokenizer: ("episodes", tokenizer))
    opened = with_environment(job(task), lambda job: SHAPE)
    assert opened.environment == ("episodes", opened.tokenizer)
    assert with_environment(job(), lambda job: SHAPE).environment is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"environment": "other.py:Game"}, "needed a Python file, found no .*other.py"),
        ({"environment": "game.py:Gane"}, "needed a class of .*game.py, got Gane; it has Game, Broken, lengths"),
        ({"environment": "game.py:Broken"}, "Broken: step: game.py, line 14: IndexError: string index out of range"),
        ({"environment": "game.py:lengths"}, "environment .*lengths.*TypeError: .*missing 3 required"),
        ({"environment": "game.py:Game", "max_turns": 0}, "max_turns must be at least 1, got 0"),
        ({"max_turns": 3}, "--max_turns: needs an environment; give --environment FILE.py:CLASS, or drop the flag"),
    ],
)
def test_a_bad_environment_ends_before_training(job, flags, message):
    with pytest.raises(InputError, match=message):
        with_environment(job(**flags), lambda job: SHAPE)


def test_a_judge_beside_an_environment_is_refused(job):
    """Its reward would decide alone, and what the environment pays would train nothing."""
    both = job(environment="game.py:Game", reward="game.py:lengths")
    both = dataclasses.replace(both, section="online_dpo")
    with pytest.raises(InputError, match="^--reward: in online_dpo the rewards of the environment decide; drop one of"):
        with_environment(both, lambda job: SHAPE)


def test_a_plan_of_memory_counts_all_turns(job):
    opened = with_environment(job(environment="game.py:Game", max_turns=3), lambda job: SHAPE)
    opened = dataclasses.replace(opened, settings=opened.settings | {"ppo": PPOConfig(max_tokens=10)})
    step = step_of(opened, "ppo", SHAPE, 1, (20, 0))
    assert (step.prompt, step.answer) == (20, 30)
    opened.environment.max_turns = 30
    assert step_of(opened, "ppo", SHAPE, 1, (20, 0)).answer == 63


def test_only_programs_that_play_environments_have_the_flags():
    flags = {"environment", "max_turns", "max_tool_tokens", "step_timeout"}
    names = {f.name for f in dataclasses.fields(sections("ppo", PPOConfig, job=PipelineConfig)["job"])}
    assert flags <= names
    others = sections("dpo", DPOConfig, job=PipelineConfig)["job"]
    assert not flags & {f.name for f in dataclasses.fields(others)}
    assert issubclass(others, PipelineConfig)


def test_earlier_stages_do_not_depend_on_the_environment(job):
    opened = job(environment="game.py:Game", max_turns=3)
    settings = opened.settings | {"model": SHAPE, "sharding": None, "run": None, "sft": None}
    assert stage_settings(settings, "sft")["job"].environment is None
    assert stage_settings(settings, "ppo")["job"].max_turns == 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_that_play_environments_have_the_flag_and_the_others_refuse_it(name):
    program = PROGRAMS[name]
    options = {key: value for key, value in program.options.items() if key in ("job", "after", "adapters")}
    flags = sections(program.options.get("section", name), program.config, **options)["job"]
    assert ("environment" in {field.name for field in dataclasses.fields(flags)}) == (name in PLAYING)
