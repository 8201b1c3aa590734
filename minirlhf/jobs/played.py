"""Settings and first steps of the programs that play environments: tools and game."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from minirlhf.environments import Episodes, TextEnvironment
from minirlhf.environments.calls import find_calls
from minirlhf.environments.tools.calculator import calculator
from minirlhf.errors import InputError, shown
from minirlhf.evaluation.policies import Report
from minirlhf.jobs.job import Job
from minirlhf.jobs.programs import GRPO_DEFAULTS
from minirlhf.jobs.settings import JobConfig, RLJobConfig
from minirlhf.rewards.answers import check_answers, exact_match, is_right
from minirlhf.rewards.scoring import Reward
from minirlhf.tasks.guessing import guessing_task
from minirlhf.tasks.sums import sums_task
from minirlhf.tasks.task import Task


@dataclass(frozen=True)
class ToolsJobConfig(RLJobConfig):
    task: str = "sums"  # [-] embedded task: sums
    tool: bool = True  # [-] false: no calculator, neither in SFT nor in GRPO


# To copy digits: many heads and short rotary wavelengths, as GRPO's sums need.
TOOLS_DEFAULTS = {
    **{name: value for name, value in GRPO_DEFAULTS.items() if name.startswith("model.")},
    **{"vocab_size": 320, "sft.steps": 1000, "sft.batch_size": 64, "sft.lr": 3e-3},
    **{"grpo.steps": 50, "grpo.group_size": 8, "grpo.lr": 1e-3},
}


def load_sums(job: ToolsJobConfig) -> Task:
    check_task(job, "sums")
    return sums_task(job.seed, tool=job.tool)


def with_calculator(job: Job) -> tuple[Job, Reward | None]:
    """-> (the job with its environment, its reward function).

    The environment is the one of the flags or of the task, else the calculator for the user's rows. Without `--reward`
    a right answer is the reward: the rows are {prompt, answer}.
    Raises: InputError if a row has no answer, or `--environment` stands beside `--tool false`.
    """
    if job.environment and not job.common.tool:
        raise InputError("--tool: false means no environment, got --environment too; drop one of the flags")
    if job.environment:
        return job, job.given_reward
    if not job.given_reward:
        check_answers([*job.task.prompts, *job.task.held_out_prompts])
    if not job.common.tool:
        return job, job.given_reward or exact_match
    options = {"reward": None if job.given_reward else right_of_row, "tokenizer": job.tokenizer}
    environment = Episodes(partial(TextEnvironment, [calculator], **options), job.tokenizer)
    return replace(job, environment=environment), job.given_reward


def right_of_row(answer: str, row: dict) -> float:
    return float(is_right(answer, row["answer"]))


def share_of_calls(job: Job, report: Report) -> float | None:
    """The share of the episodes in which the policy called a tool; None without tools."""
    tools = getattr(job.environment.make(), "tools", None) if job.environment else None
    calls = [bool(find_calls(text, tools)) for text in report.completions] if tools else []
    return sum(calls) / len(calls) if calls else None


@dataclass(frozen=True)
class GameJobConfig(RLJobConfig):
    task: str = "guessing"  # [-] embedded task: guessing


# REINFORCE++ compares all games of a batch; docs/tools.md#the-game says why groups of games are worse.
GAME_DEFAULTS = {
    **{"model.tie_word_embeddings": False, "vocab_size": 320},
    **{"sft.steps": 800, "sft.batch_size": 64, "sft.lr": 4e-3},
    **{"grpo.algorithm": "reinforce++", "grpo.group_size": 1, "grpo.turn_advantages": True, "grpo.max_tokens": 4},
    **{"grpo.batch_size": 480, "grpo.minibatch_size": None, "grpo.steps": 100, "grpo.lr": 3e-3},
}


def load_game(job: GameJobConfig) -> Task:
    check_task(job, "guessing")
    return guessing_task(job.seed)


def check_task(job: JobConfig, name: str) -> None:
    if job.task != name:
        raise InputError(f"--task: this program has the task {name}, got {shown(job.task)}; drop the flag")
