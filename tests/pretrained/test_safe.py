"""JSON and safetensors files: a good file is read, a broken file is refused, a pickle is never opened."""

import pickle
import re

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minirlhf.errors import InputError
from minirlhf.pretrained.safe import missing_weights, open_weights, read_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[1]", "it is no object"),
        ('{"names": []}', "size is missing"),
        ('{"names": [], "size": null}', "size must be a whole number, got None"),
        ('{"names": "a", "size": 1}', "names must be a list, got 'a'"),
    ],
)
def test_read_json_names_the_file_the_need_and_the_reason(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{path}: needed JSON with names and size ({reason})") + "$"):
        read_json(path, "JSON with names and size", names=list, size=int)


def test_read_json_returns_the_object_with_keys_that_nobody_asked_for(tmp_path):
    (tmp_path / "x.json").write_text('{"size": 3, "more": null}')
    assert read_json(tmp_path / "x.json", "JSON with size", size=int) == {"size": 3, "more": None}


def test_a_weights_file_is_read_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3)}, path)
    with open_weights(path) as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-1])
    for broken in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match=f"^{re.escape(str(broken))}: needed a complete"), open_weights(broken):
            pass


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("of another file"), KeyError("a")])
def test_an_error_of_the_body_is_no_error_of_the_file(tmp_path, error):
    save_file({"a": torch.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(type(error)) as caught, open_weights(tmp_path / "x.safetensors"):
        raise error
    assert caught.value is error


def test_a_folder_without_weights_gets_advice_that_depends_on_its_files(tmp_path):
    path = tmp_path / "model.safetensors"

    def advice():
        return str(missing_weights(path, "usual.bin")).removeprefix(f"{path}: needed this file, found ")

    assert advice() == "no weights; is the download complete?"
    (tmp_path / "optimizer.pt").write_bytes(b"")
    assert advice() == "optimizer.pt; is the download complete?"
    (tmp_path / "optimizer.pt").unlink()
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert advice().endswith("; if other.safetensors holds the weights, rename it to model.safetensors")
    (tmp_path / "usual.bin").write_bytes(pickle.dumps({}))
    (tmp_path / "large.pt").write_bytes(b"0" * 1000)
    words = (
        "; a pickle can run any program and is not read; if you trust it, convert it: run in that folder: python -c '"
    )
    assert words in advice() and 'glob.glob("usual*.bin")' in advice()
    (tmp_path / "usual.bin").unlink()
    assert words in advice() and '["large.pt"]' in advice()
