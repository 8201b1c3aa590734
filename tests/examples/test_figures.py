"""What the examples reach, whole: minutes each. Over all seeds see docs/results.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
