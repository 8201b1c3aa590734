"""What the examples reach, whole: minutes each. Over all seeds see docs/results.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minirlhf.tasks.guessing import OPTIMUM

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(program, output, *argv):
    command = [sys.executable, str(EXAMPLES / f"{program}.py"), "--output", str(output), *argv]
    subprocess.run(command, check=True, timeout=1800)
    return json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize("seed", range(5))
def test_grpo_solves_sums_from_a_model_that_hardly_adds(tmp_path, seed):
    found = run("grpo", tmp_path / "job", "--seed", str(seed))
    assert 0.2 <= found["greedy_gold_before"] <= 0.6 and found["greedy_gold_after"] >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_dpo_beats_sft_on_four_of_five_prompts(tmp_path, seed):
    found = run("dpo", tmp_path / "job", "--seed", str(seed))
    assert found["win_rate"] >= 0.8 and found["kl"] <= 15


@pytest.mark.parametrize("seed", range(5))
def test_sentiment_becomes_positive_and_keeps_its_grammar(tmp_path, seed):
    found = run("sentiment", tmp_path / "job", "--seed", str(seed))
    before, after = found["before"], found["after"]
    assert abs(before["gold_reward"]) <= 0.15 and after["gold_reward"] >= 0.3 and after["grammatical"] >= 0.85
    assert found["classifier_accuracy"] >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_detoxify_leaves_rude_words_out_and_little_else(tmp_path, seed):
    found = run("detoxify", tmp_path / "job", "--seed", str(seed))
    assert found["rude_before"] >= 0.5 and found["rude_after"] <= 0.06
    assert found["after"]["grammatical"] >= 0.88 and found["kl"] <= 1.6


@pytest.mark.parametrize("seed", range(5))
def test_the_adapters_of_a_llama_raise_gold(tmp_path, seed):
    found = run("llama", tmp_path / "job", "--seed", str(seed))
    assert found["after"]["gold_reward"] - found["before"]["gold_reward"] >= 0.25
    assert found["before"]["grammatical"] >= 0.85 and found["after"]["grammatical"] >= 0.85


@pytest.mark.parametrize("seed", range(5))
def test_a_policy_learns_to_call_the_calculator(tmp_path, seed):
    found = run("tools", tmp_path / "job", "--seed", str(seed))
    assert found["before"]["gold_reward"] <= 0.15 and found["after"]["gold_reward"] >= 0.9
    assert found["calls_after"] >= 0.9


def test_without_the_calculator_the_sums_stay_wrong(tmp_path):
    assert run("tools", tmp_path / "job", "--tool", "false")["after"]["gold_reward"] < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_the_game_is_played_nearly_as_well_as_possible(tmp_path, seed):
    found = run("game", tmp_path / "job", "--seed", str(seed))
    assert -found["after"]["gold_reward"] <= 1.1 * OPTIMUM < -found["before"]["gold_reward"]
