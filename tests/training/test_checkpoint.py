"""A checkpoint is complete or absent, and nested state is read back unchanged."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.training import checkpoint
from minirlhf.training.checkpoint import (
    holds_anything,
    is_complete,
    load_state,
    remove_leftovers,
    save_state,
    write_whole,
    written_whole,
)

STATE = {
    "step": 3,
    "best": {"step": 2, "value": 0.1 + 0.2},
    "none": None,
    "trainer": {"kl": {"coef": 1 / 3}, "moments": {"policy.a.weight": {"step": torch.tensor(3.0)}}, "empty": {}},
}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints" / "step-3"
    with written_whole(folder) as aside:
        save_state(aside, STATE)
        (aside / "policy").mkdir()
        (aside / "policy" / "weights").write_bytes(b"1234")
    return folder


def refusal(folder):
    with pytest.raises(InputError) as caught:
        load_state(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_nested_state_is_read_back_unchanged(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).t().to(dtype)  # not contiguous
    with written_whole(tmp_path / "x") as aside:
        save_state(aside, STATE | {"a": {"b": {"c": tensor, "d": 1}}})
    state = load_state(tmp_path / "x")
    assert_close(state.pop("a"), {"b": {"c": tensor, "d": 1}}, rtol=0, atol=0)
    assert_close(state["trainer"].pop("moments"), STATE["trainer"]["moments"], rtol=0, atol=0)
    expected = STATE | {"trainer": {name: v for name, v in STATE["trainer"].items() if name != "moments"}}
    assert state == expected


def test_two_names_of_one_tensor_are_saved(tmp_path):
    shared = torch.ones(3)
    with written_whole(tmp_path / "x") as aside:
        save_state(aside, {"a": shared, "b": {"c": shared[:2]}})
    assert load_state(tmp_path / "x")["b"]["c"].tolist() == [1, 1]


def test_the_manifest_lists_every_file_with_its_size(saved):
    files = json.loads((saved / "manifest.json").read_text())["files"]
    assert files.keys() == {"policy/weights", "state.json", "state.safetensors"}
    digest = hashlib.sha256(b"1234").hexdigest()
    assert files["policy/weights"] == {"size": 4, "sha256": digest}
    assert is_complete(saved) and names(saved.parent.parent)[:2] == ["checkpoints", "checkpoints/step-3"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_while_writing_leaves_nothing(tmp_path, error):
    with pytest.raises(error), written_whole(tmp_path / "x") as aside:
        (aside / "half").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_an_exception_while_replacing_leaves_the_old_folder(saved):
    before = names(saved)
    with pytest.raises(RuntimeError), written_whole(saved) as aside:
        (aside / "half").write_text("half")
        raise RuntimeError
    assert names(saved) == before and is_complete(saved) and len(names(saved.parent)) == 1 + len(before)


def test_a_new_folder_replaces_the_old_folder_completely(saved):
    with written_whole(saved) as aside:
        (aside / "new").write_text("new")
    assert names(saved.parent) == ["step-3", "step-3/manifest.json", "step-3/new"]


def test_all_files_are_flushed_before_the_folder_has_its_name(tmp_path, monkeypatch):
    flushed, target = [], tmp_path / "x"
    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append((path.name, target.exists())))
    with written_whole(target) as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "file").write_text("1")
    early = {name for name, renamed in flushed if not renamed}
    assert {"deep", "file", "manifest.json"} < early and (tmp_path.name, True) in flushed


@pytest.fixture
def syncs(monkeypatch):
    """(real path, names in the folder) of each os.fsync so far. A rename is safe only once its folder is flushed."""
    opened, flushed, real_open, real_sync = {}, [], os.open, os.fsync

    def recorded_open(path, *rest, **options):
        handle = real_open(path, *rest, **options)
        opened[handle] = Path(path)
        return handle

    def recorded_sync(handle):
        path = opened[handle]
        flushed.append((path, {p.name for p in path.iterdir()} if path.is_dir() else None))
        real_sync(handle)

    monkeypatch.setattr(os, "open", recorded_open)
    monkeypatch.setattr(os, "fsync", recorded_sync)
    return flushed


def test_the_parent_folder_of_a_text_file_is_flushed_after_the_rename(tmp_path, syncs):
    write_whole(tmp_path / "deep" / "x.toml", "text")
    (file, _), (parent, names) = syncs
    assert file.name.startswith(".x.toml.") and (parent, names) == (tmp_path / "deep", {"x.toml"})


def test_the_parent_folder_of_a_folder_is_flushed_after_the_rename(tmp_path, syncs):
    for content in ("old", "new"):  # the second time the folder replaces another
        syncs.clear()
        with written_whole(tmp_path / "deep" / "x") as aside:
            (aside / "file").write_text(content)
        *inside, (parent, names) = syncs
        assert {path.name for path, _ in inside} >= {"file", "manifest.json"}
        assert all(path.is_relative_to(aside) for path, _ in inside)
        assert parent == tmp_path / "deep" and "x" in names and aside.name not in names


@pytest.mark.parametrize("file", ["policy/weights", "state.json", "state.safetensors"])
@pytest.mark.parametrize("fault", ["cut short", "longer", "gone"])
def test_a_checkpoint_with_a_file_cut_short_or_gone_is_incomplete(saved, file, fault):
    path = saved / file
    path.unlink() if fault == "gone" else os.truncate(path, path.stat().st_size + (1 if fault == "longer" else -1))
    assert not is_complete(saved)
    size = len((saved / file).read_bytes()) if fault != "gone" else 0
    said = f"{file} is missing" if fault == "gone" else f"{file} has {size} bytes, not "
    text = refusal(saved)
    assert text.startswith(f"{saved}: damaged: {said}") and text.endswith("; resume from another checkpoint")


@pytest.mark.parametrize("manifest", [None, "", "{", "null", "[]"])
def test_a_checkpoint_without_a_readable_manifest_is_incomplete(saved, manifest):
    path = saved / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    assert not is_complete(saved)
    said = "manifest.json is missing" if manifest is None else "manifest.json is damaged ("
    assert refusal(saved).startswith(f"{saved}: damaged: {said}")


@pytest.mark.parametrize("fault", ["a folder", "a loop of links"])
@pytest.mark.parametrize("file", ["manifest.json", "policy"])
def test_a_checkpoint_that_the_system_refuses_to_read_is_named_and_not_passed_over(saved, file, fault):
    path = saved / file
    path.rename(saved / "aside")
    path.mkdir() if fault == "a folder" else path.symlink_to(path.name)
    if (file, fault) == ("policy", "a folder"):  # its file is gone: such a checkpoint is incomplete
        assert not is_complete(saved)
    else:
        with pytest.raises(InputError, match=f"^{saved}: needed a folder that can be read .*check its permissions$"):
            is_complete(saved)


def test_an_absent_folder_is_incomplete(tmp_path):
    assert not is_complete(tmp_path / "x")


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_a_file_of_the_right_size_and_wrong_content_is_refused(saved, file):
    (saved / file).write_bytes(b"\xff" * (saved / file).stat().st_size)
    text = refusal(saved)
    assert text == (
        f"{saved}: damaged: the checksum of {file} differs from manifest.json; resume from another checkpoint"
    )


def test_a_text_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.toml"
    write_whole(path, "old é\n")
    monkeypatch.setattr(checkpoint, "_flush", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match="x.toml: needed to write it, got: disk full"):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old é\n" and len(list(path.parent.iterdir())) == 1


def test_leftovers_of_a_crash_do_not_count_as_files_and_are_removed(tmp_path):
    assert not holds_anything(tmp_path / "absent")
    (tmp_path / ".step-3.7.tmp").mkdir()
    (tmp_path / ".step-3.7.tmp" / "x").write_text("")
    (tmp_path / ".config.toml.7.tmp").write_text("")
    assert not holds_anything(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert holds_anything(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["notes.txt"]
