"""`minirlhf train NAME` does what examples/NAME.py does."""

import functools
import sys
from dataclasses import replace

import pytest

from minirlhf.cli.main import main
from minirlhf.cli.train import PROGRAMS
from minirlhf.jobs import opened, stage

from ..examples.conftest import EXAMPLES, STAGES, call, inputs, small_task  # noqa: F401

FLAGS = {
    "best_of_n": ["--best_of", "4", "--best_of_prompts", "2"],
    **dict.fromkeys(("sentiment", "detoxify"), ["--rows", "100"]),
    "llama": ["--base_steps", "2"],
    "grpo": ["--stop_sft_at", "none"],
    "distillation": ["--student_width", "8", "--student_steps", "2"],
    "process_reward": ["--rows", "60", "--model.max_position_embeddings", "200"],
}


QUICK = ["--run.eval_every", "0", "--run.save_every", "0"]


@functools.cache
def smaller_task(name, seed):
    task = small_task(name, seed)
    few = {part: getattr(task, f"held_out_{part}")[:4] for part in ("sft", "pairs", "prompts")}
    few = {f"held_out_{part}": rows for part, rows in few.items()}
    return replace(task, prompts=task.prompts[:64], sft=task.sft[:64], pairs=task.pairs[:64], **few)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(opened, "embedded_task", smaller_task)
    monkeypatch.setattr(stage, "EVALUATION_TOKENS", 6)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """command(*words): `minirlhf` with these words, in this process."""

    def command(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["minirlhf", *map(str, words)])
        main()

    return command


def metrics(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("metrics.jsonl")}


LIKE_SENTIMENT = ("detoxify",)  # the same function with another task


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_SENTIMENT else name for name in PROGRAMS]
)
def test_the_metrics_are_those_of_the_example_byte_for_byte(name, call, inputs, command, tmp_path):  # noqa: F811
    flags = [*QUICK, *FLAGS.get(name, [])]
    call(name, tmp_path, *flags, "--output", tmp_path / "example")
    command("train", name, "--config", inputs / f"{name}.toml", *flags, "--output", tmp_path / "command")
    found = metrics(tmp_path / "command")
    assert found and found == metrics(tmp_path / "example")
