"""Contract 11: a killed and resumed run equals an uninterrupted run bit for bit: weights, optimizer, metrics.jsonl."""

import json
import signal
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

KILLS = [("sft", "5"), ("ppo", "5"), ("sft", "saving"), ("grpo", "5"), ("dpo", "4"), ("episodes", "5")]


@pytest.fixture(scope="module")
def killed(forks, tmp_path_factory):
    """(kind, when) -> the folder of a run that was killed at that moment. All runs go in parallel."""
    folders = {kill: tmp_path_factory.mktemp("-".join(kill)) for kill in KILLS}
    done = forks.run(*[[tiny.__file__, "killed", kind, folders[kind, when], when] for kind, when in KILLS])
    assert [process.returncode for process in done] == [-signal.SIGKILL] * len(KILLS), done
    return folders


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in {kind for kind, _ in KILLS}}
    for kind, folder in folders.items():
        tiny.go_on(kind, folder)
    return folders


def state(folder: Path) -> dict[str, bytes]:
    """The files that must be equal: the last checkpoint, the model, metrics and samples."""
    files = [*(folder / "checkpoints" / "step-8").rglob("*"), *(folder / "model").rglob("*")]
    files += [folder / "metrics.jsonl", folder / "samples.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("kill", KILLS, ids="-".join)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run_bit_for_bit(killed, uninterrupted, kill):
    folder = killed[kill]
    assert not (folder / "model").exists()
    tiny.go_on(kill[0], folder, resume=True)
    resumed, expected = state(folder), state(uninterrupted[kill[0]])
    assert resumed.keys() == expected.keys() and len(resumed) > 8
    assert [name for name in expected if resumed[name] != expected[name]] == []
    assert [path.name for path in folder.rglob(".*")] == []  # nothing half-written is left


def test_the_killed_runs_had_to_go_back_to_a_checkpoint(uninterrupted, killed):
    # a checkpoint is due after steps 3 and 6; step-4 may be kept as the best evaluation
    lines = (uninterrupted["ppo"] / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 8 and all(f'{{"step": {k}, ' in line for k, line in enumerate(lines))


def test_the_runs_had_state_beside_the_weights_of_the_policy(uninterrupted):
    lines = (uninterrupted["grpo"] / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(line)["entropy_coef"] for line in lines}) > 3  # the adaptive entropy bonus
    last = load_file(uninterrupted["dpo"] / "checkpoints" / "step-8" / "reference" / "model.safetensors")
    start = tiny.dpo(torch.float32, loss="bco_pair", ref_update_every=2).models["reference"].state_dict()
    moved = last["model.norm.weight"] - start["transformer.model.norm.weight"]
    assert moved.abs().max() > 1e-3  # the reference of TR-DPO moves
