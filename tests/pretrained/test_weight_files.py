"""Safetensors files that are written tensor by tensor."""

import errno
import json
from functools import partial
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.errors import InputError
from minirlhf.model import LoRAConfig, Policy, apply_lora, load_pretrained, save_adapter, save_pretrained
from minirlhf.pretrained import weight_files
from minirlhf.pretrained.weight_files import Weight, in_order, make_weights, split, write_file

TENSORS = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.arange(4.0).bfloat16(),
    "half": torch.ones(3, dtype=torch.float16),
    "ü": torch.tensor(2.5),
    "double": torch.full((2, 1, 2), 1e-300, dtype=torch.float64),
    "B.weight": torch.zeros(0, 4),
}


def weights(tensors=TENSORS):
    return {name: Weight(tuple(x.shape), x.dtype, partial(torch.clone, x)) for name, x in tensors.items()}


def test_a_file_has_the_bytes_of_the_library(tmp_path):
    write_file(tmp_path / "ours", weights())
    save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_weight_is_converted_when_it_is_written(tmp_path):
    write_file(tmp_path / "file", {"a": weights()["b"]._replace(dtype=torch.bfloat16)})
    assert torch.equal(load_file(tmp_path / "file")["a"], TENSORS["b"].bfloat16())


def test_weights_are_split_in_their_order_and_made_in_the_order_of_the_files():
    made = []

    def make(name, size):
        return Weight((size,), torch.float32, lambda: made.append(name) or torch.zeros(size))

    found = {name: make(name, size) for name, size in {"d": 3, "c": 1, "b": 9, "a": 2, "e": 2}.items()}
    with mock.patch.object(weight_files, "FILE_BYTES", 16):
        assert [list(part) for part in split(found)] == [["d", "c"], ["b"], ["a", "e"]]
        make_weights(found)
    assert made == ["c", "d", "b", "a", "e"]
    assert in_order(weights()) == ["double", "B.weight", "b", "ü", "a", "half"]


def test_a_model_in_several_files_comes_back_and_the_files_of_the_model_before_go(tmp_path, make, ids):
    model, other = make(), make(seed=3)
    with mock.patch.object(weight_files, "FILE_BYTES", 6000):
        save_pretrained(model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("model-*"))]
    assert len(sizes) == len(set(index["weight_map"].values())) > 3 and max(sizes) < 6000 + 1500
    assert torch.equal(load_pretrained(tmp_path)(ids), model(ids))
    save_pretrained(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with mock.patch.object(weight_files, "FILE_BYTES", 6000):
        save_pretrained(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(load_pretrained(tmp_path)(ids), model(ids))


def test_a_full_disk_is_one_line_and_keeps_the_file_before(tmp_path, make, ids):
    policy = Policy(make())
    save_pretrained(policy, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    full = mock.patch.object(weight_files.os, "replace", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with full, pytest.raises(InputError, match="model.safetensors: needed to write it, got: No space left on device"):
        save_pretrained(Policy(make(seed=3)), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["file", "taken"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, make, name):
    (tmp_path / "file").write_text("no folder")
    for file in ("config.json", "adapter_config.json"):
        (tmp_path / "taken" / file).mkdir(parents=True)
    for save, model in ((save_pretrained, make()), (save_adapter, apply_lora(make(), LoRAConfig(r=2)))):
        with pytest.raises(InputError, match=f"{name}: needed to write it, got: (File exists|Is a directory); make"):
            save(model, tmp_path / name)


def test_a_weight_of_another_shape_than_announced_is_no_file(tmp_path):
    wrong = {"a": Weight((3,), torch.float32, lambda: torch.zeros(4))}
    with pytest.raises(ValueError, match=r"announced as \(3,\), but is \(4,\)"):
        write_file(tmp_path / "file", wrong)
    assert not list(tmp_path.iterdir())
