"""Two processes read model folders in slices: the same weights as one process, and half of the bytes."""

import json

import folders
import pytest

from minirlhf.pretrained.families import FAMILIES


def results(folder):
    return [json.loads((folder / "folders" / f"{rank}.json").read_text()) for rank in range(2)]


def test_slices_of_every_family_and_model_class_are_read_as_one_process_reads_them(two_processes):
    for found in results(two_processes):
        assert {name.split(",")[0] for name in found["read"]} == {*folders.SOME, *folders.WAYS}
        assert {name: wrong for name, wrong in found["read"].items() if wrong} == {}


def test_new_adapters_on_slices_start_as_in_one_process(two_processes):
    assert [found["adapted"] for found in results(two_processes)] == [[], []]


def test_a_new_model_in_slices_has_the_weights_of_one_process(two_processes):
    for found in results(two_processes):
        assert found["fresh"] == {"qwen3_moe": [], "gpt2": []}


def test_each_process_reads_its_share_of_the_bytes(two_processes):
    for found in results(two_processes):
        read = found["bytes"]
        assert 0.47 < read["bytes"] / read["all"] < 0.53  # rows of odd sizes are not split evenly
        assert read["largest"] <= 0.53 * read["largest weight"]


@pytest.mark.slow
def test_every_way_to_read_and_every_new_model(all_sharded):
    for found in results(all_sharded):
        assert len(found["read"]) > 90 and not any(found["read"].values())
        assert found["fresh"] == dict.fromkeys(FAMILIES, [])
