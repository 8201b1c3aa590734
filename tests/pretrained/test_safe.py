"""JSON and safetensors files: a good file is read, a broken file is refused, a pickle is never opened."""

import pickle
import re

import pytest
import torch
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


def test_a_weights_file_is_read_and_an_error_while_reading_names_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3)}, path)
    with open_weights(path) as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: needed a complete"), open_weights(path) as file:
        file.get_tensor("b")


def test_a_folder_without_weights_gets_advice_that_depends_on_its_files(tmp_path):
    path = tmp_path / "model.safetensors"
    assert str(missing_weights(path, "usual.bin")) == (
        f"{path}: needed this file, found no weights; is the download complete?"
    )
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert "found other.safetensors; is the download complete?" in str(missing_weights(path, "usual.bin"))
    for name, source in (("optimizer.pt", "optimizer.pt"), ("usual.bin", "usual.bin")):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        assert str(missing_weights(path, "usual.bin")).endswith(
            "; a pickle can run any program and is not read; if you trust it, convert it: safetensors.torch."
            f"save_file(torch.load('{source}', weights_only=True), 'model.safetensors')"
        )
