"""Two processes read model folders in slices: the same weights as one process, and half of the bytes."""

import json
from pathlib import Path

import folders
import pytest
import tiny

from minirlhf.pretrained import load_policy
from minirlhf.pretrained.families import FAMILIES
from minirlhf.training import export


def results(folder):
    return [json.loads((folder / "folders" / f"{rank}.json").read_text()) for rank in range(2)]


def test_slices_of_every_family_and_model_class_are_read_as_one_process_reads_them(two_processes):
    for found in results(two_processes):
        assert {name.split(",")[0] for name in found["read"]} == {*folders.SOME, *folders.WAYS}
        assert {name: wrong for name, wrong in found["read"].items() if wrong} == {}


def test_new_adapters_on_slices_start_as_in_one_process(two_processes):
    assert [found["adapted"] for found in results(two_processes)] == [[], []]


def test_weights_in_slices_are_quantised_to_the_bits_of_one_process(two_processes):
    assert [found["four bits"] for found in results(two_processes)] == [[], []]


def test_a_new_model_in_slices_has_the_weights_of_one_process(two_processes):
    for found in results(two_processes):
        assert found["fresh"] == {"qwen3_moe": [], "gpt2": []}


def test_each_process_reads_its_share_of_the_bytes(two_processes):
    for found in results(two_processes):
        read = found["bytes"]
        assert 0.47 < read["bytes"] / read["all"] < 0.53  # rows of odd sizes are not split evenly
        assert read["largest"] <= 0.53 * read["largest weight"]


def test_slices_are_written_as_one_process_writes_the_model_and_gathered_one_by_one(two_processes):
    one, two = (two_processes / "folders" / name for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert (
        len(list((one / "policy in files").glob("model-*"))) > 3
        and Path("adapted, merged/value_head.safetensors") in files
    )
    files.remove(damaged := Path("policy in files/model-00002-of-00007.safetensors"))  # by `check_damage`
    assert {*files, damaged, Path("policy in files/manifest.json")} == {
        path.relative_to(two) for path in two.rglob("*") if path.is_file()
    }
    assert [file for file in files if (one / file).read_bytes() != (two / file).read_bytes()] == []
    for found in results(two_processes):
        assert 0.9 < found["gathered"] < 1.3  # an adapter is gathered with the weight that it changes


def test_each_process_reads_its_share_for_checksums_and_all_name_the_damage(two_processes):
    found = [found["damage"] for found in results(two_processes)]
    assert all(0.3 < share < 0.7 for share, _ in found) and sum(share for share, _ in found) == pytest.approx(1)
    for _, error in found:
        assert "damaged: the checksum of model-00002-of-00007.safetensors differs" in error


def test_a_checkpoint_in_slices_has_the_model_folder_beside(two_processes, tmp_path):
    run = two_processes / "slices"
    for step in (6, 8):
        names = {path.name for path in (run / f"checkpoints/step-{step}").iterdir()}
        assert {"policy", "state.json", "shard-00000-of-00002.safetensors"} < names
    model, last = run / "model", run / "checkpoints/step-8/policy"
    assert {path.name for path in last.iterdir()} == {path.name for path in model.iterdir()} - {"manifest.json"}
    assert all(path.read_bytes() == (model / path.name).read_bytes() for path in last.iterdir())
    assert load_policy(run / "checkpoints/step-6/policy").transformer.config.num_hidden_layers == 1
    before = json.loads((run / "checkpoints/step-6/manifest.json").read_text())["files"]
    assert "policy/model.safetensors" in before
    assert not (two_processes / "resumed/checkpoints/step-8/policy").exists()  # without --run.export
    assert not list((run / "checkpoints").glob(".*"))


def test_export_of_one_process_has_no_effect_and_says_so(tmp_path, capsys):
    export.say_no_effect.cache_clear()
    tiny.go_on("sft", tmp_path / "run", export=True)
    assert capsys.readouterr().out.count("--run.export has no effect: checkpoints of this strategy hold model") == 1


@pytest.mark.slow
def test_every_way_to_read_and_every_new_model(all_cases):
    for found in results(all_cases):
        assert len(found["read"]) > 90 and not any(found["read"].values())
        assert found["fresh"] == dict.fromkeys(FAMILIES, [])
