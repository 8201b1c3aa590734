"""Every program comes to the metrics of one process when several processes hold its models in copies or in slices."""

import json
import subprocess
import sys
from pathlib import Path

import programs
import pytest

BOUND = 2e-4  # of each metric, in fp32


def train(folder, *words):
    command = [sys.executable, programs.__file__, str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    outputs = "\n".join(path.read_text() for path in Path(folder).glob("*.txt"))
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{outputs[-4000:]}"
    return folder


def metrics(folder):
    """{file: metrics of each step} of all stages of a job."""
    files = sorted(folder.rglob("metrics.jsonl"))
    return {str(file.relative_to(folder)): [json.loads(line) for line in file.open()] for file in files}


def check_equal(folder, program, layout):
    expected, found = metrics(folder / f"{program}-one"), metrics(folder / f"{program}-{layout}")
    assert expected and found.keys() == expected.keys()
    for file, steps in expected.items():
        assert found[file] == [pytest.approx(step, rel=BOUND, abs=BOUND) for step in steps], file
    return (folder / f"{program}-{layout}.txt").read_text()


def test_ppo_in_slices_trains_as_one_process(tmp_path):
    """All four models are in slices: policy, reference, reward model, value model."""
    train(tmp_path, "ppo", "one,fsdp-2", "--ppo.separate_value_model", "true")
    output = check_equal(tmp_path, "ppo", "fsdp-2")
    assert output.count("2 processes, --parallel fsdp\n") == 1  # once, not once for each process
    assert "in slices: policy reference value_model reward\n" in output


@pytest.mark.slow
@pytest.mark.parametrize("program", [name for name in programs.FLAGS if name != "multi_adapter"])
def test_every_program_trains_as_one_process(tmp_path, program):
    layouts = ["auto-2", "zero-2", "fsdp-2", "layers-2", "hsdp-4"]
    train(tmp_path, program, ",".join(["one", *layouts]))
    for layout in layouts:
        check_equal(tmp_path, program, layout)
