"""`minirlhf data download`, and data sets of the hub as `--data hub:OWNER/NAME`."""

import hashlib
import io
import json
import zipfile

import pytest

from minirlhf.cli import data_make

from ...hub_server import COMMIT


def test_a_data_set_becomes_a_folder_with_a_manifest(call, hub_server, tmp_path):
    code, out, _ = call("download", "hub:maker/rows:*/train.jsonl", "--output", "data")
    assert code == 0 and f"data/rows: hub:maker/rows@{COMMIT}:*/train.jsonl" in out
    manifest = json.loads((tmp_path / "data/rows/manifest.json").read_text())
    data = (tmp_path / "data/rows/a/train.jsonl").read_bytes()
    assert manifest["source"] == f"hub:maker/rows@{COMMIT}:*/train.jsonl"
    assert manifest["files"][0] == {
        "file": "a/train.jsonl", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
    }  # fmt: skip
    assert not list(tmp_path.glob("data/rows/*/test.jsonl")) and not list(tmp_path.glob("data/.*"))
    code, _, err = call("download", "hub:maker/rows", "--output", "data")
    assert code == 2 and "data/rows: needed a new file to write" in err


def test_all_means_the_named_sets_and_archives_are_unpacked(call, hub_server, monkeypatch, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("deep/../folder/rows.jsonl", '{"prompt": "p"}\n')
        archive.writestr("__MACOSX/notes.txt", "no rows")
    hub_server.repos["datasets/maker/packed"] = {"rows.jsonl.zip": packed.getvalue()}
    sets = {"one": "hub:maker/rows", "two": "hub:maker/packed:rows.jsonl.zip"}
    monkeypatch.setattr(data_make, "DATA_SETS", sets)
    assert call("download", "all", "--output", "data")[0] == 0
    files = {path.relative_to(tmp_path / "data").as_posix() for path in tmp_path.glob("data/**/*.jsonl")}
    assert files == {"one/a/train.jsonl", "one/b/train.jsonl", "two/rows.jsonl"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "got 'gsm9k'; the nearest is gsm8k"),
        ("hub:maker/nothing", "hub:maker/nothing: no such folder here"),
        ("hub:maker/rows:none.jsonl", "needed files of rows named none.jsonl"),
    ],
)
def test_unknown_names_write_nothing(call, hub_server, tmp_path, name, message):
    code, _, err = call("download", name, "--output", "data")
    lines = [line for line in err.splitlines() if line and not line.startswith("Fetching")]  # a progress bar
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert not [path for path in tmp_path.glob("data/*") if not path.name.startswith(".")]


def test_every_reader_takes_a_name_of_the_hub(call, hub_server, tmp_path):
    code, out, _ = call("check", "hub:maker/rows")
    assert code == 0 and "2 kept, 0 refused" in out
    code, out, _ = call("convert", "hub:maker/rows:a/train.jsonl", "--layout", "messages", "--output", "new.jsonl")
    manifest = json.loads((tmp_path / "new.jsonl.manifest.json").read_text())
    assert code == 0 and manifest["sources"] == [{"file": f"hub:maker/rows@{COMMIT}:a/train.jsonl"}]
