"""Contract 4: the number of processes changes no result of any trainer, nor a run with its checkpoints."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

FOUR_BITS = ("ppo_4_bits", "ppo_qlora")


@pytest.mark.parametrize("case", tiny.COPIED.split(","))
def test_two_processes_train_as_one_process_on_the_joined_batch(two_processes, case):
    check_case(two_processes, case, case)


def check_case(folder, case, name):
    """The results that both processes wrote under this name are those of one process."""
    alone = tiny.CASES[case]()
    log = tiny.train(alone, tiny.batches(8))
    assert any((w - v).abs().max() > 1e-3 for w, v in zip(_values(alone), _values(tiny.CASES[case]()), strict=True))
    bound = 1e-6 if case in FOUR_BITS else 1e-9  # 4-bit weights are read as fp32, so their adapters are rounded too
    for rank in range(2):
        found = load_file(folder / f"{name}-{rank}.safetensors")
        assert_close(found, tiny.weights(alone), rtol=bound, atol=bound)
        for metrics, expected in zip(json.loads((folder / f"{name}-{rank}.json").read_text()), log, strict=True):
            assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("case", tiny.SHARDED.split(","))
def test_a_model_in_slices_trains_as_in_one_process(two_processes, case):
    check_case(two_processes, case, f"{case}-fsdp")


def check_few(folder, case, name):
    alone = tiny.CASES[case]()
    record = json.loads(json.dumps(tiny.train_on_few(alone)))
    bound = 1e-6 if case in FOUR_BITS else 1e-9
    for rank in range(2):
        assert_close(load_file(folder / f"{name}-{rank}.safetensors"), tiny.weights(alone), rtol=bound, atol=bound)
        found = json.loads((folder / f"{name}-{rank}.json").read_text())
        for metrics, expected in zip(found["log"], record["log"], strict=True):
            assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-6)
        for measured, expected in zip(*(each.get("evaluations", []) for each in (found, record)), strict=True):
            assert measured[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-9)
            for sample, like in zip(measured[1], expected[1], strict=True):
                assert sample == {k: pytest.approx(x, abs=1e-6) if isinstance(x, float) else x for k, x in like.items()}


@pytest.mark.parametrize("case", tiny.FEW.split(","))
def test_fewer_rows_than_processes_train_and_evaluate_as_in_one_process(two_processes, case):
    check_few(two_processes, case, f"{case}-few")


@pytest.mark.parametrize("case", [case for case in tiny.FEW.split(",") if case in tiny.SHARDED.split(",")])
def test_fewer_rows_than_processes_are_enough_for_a_model_in_slices(two_processes, case):
    check_few(two_processes, case, f"{case}-fsdp-few")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_measures_of_a_policy_do_not_depend_on_the_number_of_processes(two_processes, strategy):
    expected = json.loads(json.dumps(tiny.measured()))
    for rank in range(2):
        found = json.loads((two_processes / f"measured-{strategy}-{rank}.json").read_text())
        for ours, theirs in zip(found[:3], expected, strict=False):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-9, abs=1e-9)
            assert ours[1:] == theirs[1:]
        assert found[3:] in ([], [pytest.approx(expected[3], rel=1e-9)])


def test_a_copy_of_a_model_in_slices_has_its_weights(two_processes):
    expected = tiny.Policy(tiny.transformer(layers=2)).state_dict()
    for rank in range(2):
        assert_close(load_file(two_processes / f"copy-{rank}.safetensors"), dict(expected), rtol=0, atol=0)


def test_a_run_in_slices_ends_with_a_whole_model_and_goes_on_in_slices_or_in_one_process(two_processes, tmp_path):
    whole, slices = two_processes / "slices", two_processes / "resumed"
    tiny.go_on("sft", tmp_path / "one", dtype=torch.float64)
    model = load_file(tmp_path / "one" / "model" / "model.safetensors")
    assert_close(load_file(whole / "model" / "model.safetensors"), model, rtol=0, atol=1e-9)
    for file in ("metrics.jsonl", "model/model.safetensors", "checkpoints/step-8/shard-00001-of-00002.safetensors"):
        assert (slices / file).read_bytes() == (whole / file).read_bytes()  # resumed = uninterrupted
    shutil.copytree(whole, tmp_path / "two")
    for name in ("model", "checkpoints/step-8"):
        shutil.rmtree(tmp_path / "two" / name)
    tiny.go_on("sft", tmp_path / "two", resume=True, dtype=torch.float64)  # from the shards of step 6
    assert_close(load_file(tmp_path / "two" / "model" / "model.safetensors"), model, rtol=0, atol=1e-9)


def test_moments_are_split_between_processes_and_the_run_is_that_of_one_process(two_processes, tmp_path):
    tiny.go_on("sft", tmp_path, dtype=torch.float64)
    whole, resumed = two_processes / "zero", two_processes / "zero-resumed"
    file = "model/model.safetensors"
    assert_close(load_file(whole / file), load_file(tmp_path / file), rtol=0, atol=1e-9)
    shards = [f"checkpoints/step-8/shard-0000{rank}-of-00002.safetensors" for rank in range(2)]
    for name in ("metrics.jsonl", file, *shards):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()  # resumed = uninterrupted
    moments = [{name for name in load_file(whole / shard) if "/moments/" in name} for shard in shards]
    sizes = [sum(load_file(whole / shard)[name].numel() for name in moments[i]) for i, shard in enumerate(shards)]
    assert not moments[0] & moments[1] and min(sizes) > 0.4 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in tiny.COPIED.split(",")])
def test_every_case_trains_in_two_processes_as_in_one(all_cases, case):
    check_case(all_cases, case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in tiny.SHARDED.split(",")])
def test_every_model_in_slices_trains_as_in_one_process(all_cases, case):
    check_case(all_cases, case, f"{case}-fsdp")
    check_few(all_cases, case, f"{case}-fsdp-few")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in tiny.FEW.split(",")])
def test_every_trainer_takes_fewer_rows_than_processes(all_cases, case):
    check_few(all_cases, case, f"{case}-few")


def _values(trainer):
    return tiny.weights(trainer).values()


def test_minibatches_whose_rows_the_processes_cannot_share_evenly(two_processes):
    alone = tiny.uneven()
    log = tiny.train(alone, tiny.batches(6))
    for rank in range(2):
        assert_close(load_file(two_processes / f"uneven-{rank}.safetensors"), tiny.weights(alone), rtol=1e-9, atol=1e-9)
        assert json.loads((two_processes / f"uneven-{rank}.json").read_text()) == [pytest.approx(x, 1e-6) for x in log]


def test_the_first_process_waits_for_a_late_one_at_the_last_checkpoint(two_processes):
    assert json.loads((two_processes / "codes.json").read_text()) == [0, 0]
    lines = (two_processes / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(8))
    assert (two_processes / "run" / "model" / "manifest.json").exists()
