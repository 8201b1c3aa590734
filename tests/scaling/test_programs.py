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


@pytest.mark.slow
def test_ppo_in_slices_trains_as_one_process(tmp_path):
    """All four models are in slices: policy, reference, reward model, value model."""
    small = ["--ppo.microbatch_tokens", "30"]  # the processes have different numbers of micro-batches
    train(tmp_path, "ppo", "one,fsdp-2", "--ppo.separate_value_model", "true", *small)
    output = check_equal(tmp_path, "ppo", "fsdp-2")
    assert output.count("2 processes, --parallel fsdp\n") == 1  # once, not once for each process
    assert "in slices: policy reference value_model reward\n" in output


@pytest.mark.slow
@pytest.mark.parametrize("program", programs.FLAGS)
def test_every_program_trains_as_one_process(tmp_path, program):
    layouts = ["auto-2", "zero-2", "fsdp-2", "layers-2", "hsdp-4"]
    train(tmp_path, program, ",".join(["one", *layouts]))
    for layout in layouts:
        check_equal(tmp_path, program, layout)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a policy and a reward model, each a finished stage."""
    return train(tmp_path_factory.mktemp("models"), "ppo", "one") / "ppo-one"


GIVEN = {
    "all": ("ppo", "REWARD"),
    "lora": ("ppo", "REWARD --train lora"),
    "qlora": ("ppo", "REWARD --train qlora --ppo.separate_value_model true"),
    "reward model of adapters in 4 bits": ("ppo", "--train qlora"),
    "dora in 4 bits": ("dpo", "--train qlora --lora.use_dora true --dpo.ref_update_mix 1"),
    "dora": ("ppo", "REWARD --train lora --lora.use_dora true --ppo.separate_value_model true"),
    "freeze": ("ppo", "REWARD --freeze layers.0"),
    "value": ("ppo", "REWARD --value {models}/reward"),
    "reward model of adapters": ("ppo", "--train lora"),
    "lora of dpo": ("dpo", "--train lora --dpo.ref_update_mix 1"),
    "lora of sft": ("sft", "--train lora"),
    "lora of a reward model": ("reward_model", "--train lora"),
    "teacher": ("distillation", ""),
    "student": (
        "distillation",
        "--student {models}/sft --distillation.algorithm minillm --distillation.beta 1 --distillation.on_policy 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_given_models_in_slices_train_as_in_one_process(tmp_path, models, name):
    program, flags = GIVEN[name]
    flags = flags.replace("REWARD", "--reward {models}/reward").format(models=models).split()
    train(tmp_path, program, "one,fsdp-2,layers-2", "--policy", str(models / "sft"), *flags)
    for layout in ("fsdp-2", "layers-2"):
        check_equal(tmp_path, program, layout)


@pytest.mark.slow
def test_a_job_goes_on_with_another_strategy_and_number_of_processes(tmp_path):
    train(tmp_path, "ppo", "one")
    for first, then in (("fsdp-2", "one"), ("one", "fsdp-2"), ("zero-2", "fsdp-2")):
        folder = str(tmp_path / f"{first}-{then}")
        train(tmp_path / "jobs", "ppo", first, "--output", folder, "--stop_after", "reward")
        train(tmp_path / "jobs", "ppo", then, "--output", folder, "--resume")
        for file, steps in metrics(tmp_path / "ppo-one").items():
            assert metrics(Path(folder))[file] == [pytest.approx(step, rel=BOUND, abs=BOUND) for step in steps]


@pytest.mark.slow
def test_check_tries_every_stage_with_the_strategy(tmp_path):
    train(tmp_path, "ppo,distillation", "fsdp-2", "--check")
    for program in ("ppo", "distillation"):
        output = (tmp_path / f"{program}-fsdp-2.txt").read_text()
        assert output.count("2 processes, --parallel fsdp\n") == output.count("no problems found") == 1
        assert f"{program}: a step on" in output and "are free on cpu for each process" in output
