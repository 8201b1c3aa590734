"""Names of the hub, against a small server in a thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minirlhf.errors import InputError
from minirlhf.jobs.checks import with_commits
from minirlhf.jobs.given_rewards import reward_of
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.settings import JobConfig
from minirlhf.pretrained import hub
from minirlhf.training.run import RunSettings

from ..hub_server import COMMIT, OLD


def test_a_model_arrives_without_code_and_pickles(hub_server):
    folder = hub.model_folder("maker/small")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "model.safetensors", "chat_template.jinja", "merges.txt"}
    assert folder.name == COMMIT
    assert hub.pinned("maker/small") == f"maker/small@{COMMIT}"


def test_a_revision_and_a_second_call(hub_server):
    folder = hub.model_folder("maker/small@v1")
    assert folder.name == OLD and hub.pinned("maker/small@v1") == f"maker/small@{OLD}"
    asked = len(hub_server.asked)
    assert hub.model_folder("maker/small@v1") == folder and len(hub_server.asked) == asked  # once in a process
    assert hub.model_folder(f"maker/small@{OLD}") == folder  # the pinned name leads to the same files


def test_files_that_are_here_need_no_connection(hub_server, monkeypatch):
    folder = hub.model_folder("maker/small")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    hub._fetch.cache_clear()
    assert hub.model_folder("maker/small") == folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maker/nothing", "maker/nothing: no such folder here, and .* has no such model; check the name"),
        ("maker/small@v9", "maker/small@v9: .* has no revision v9 of this model"),
        ("maker/empty", "maker/empty: needed a model with a config.json"),
    ],
)
def test_unknown_names_end_in_one_line(hub_server, name, message):
    with pytest.raises(InputError, match=message):
        hub.model_folder(name)


REFUSALS = {
    "no such file": ("resolve", 404, "EntryNotFound", "has no such model, or lacks one of its files .HTTP 404"),
    "no such page": ("api", 404, "", "has no such model, or lacks one of its files .HTTP 404"),
    "private, or no such model": ("api", 401, "RepoNotFound", "has no such model; check the name, or set HF_TOKEN if"),
    "gated": ("resolve", 401, "GatedRepo", "this model asks for a login; accept its terms and set HF_TOKEN"),
    "gated, with a token": ("resolve", 403, "GatedRepo", "this model asks for a login; accept its terms and set"),
    "wrong token": ("api", 401, "", "asks for a login that may read this model .HTTP 401.; set HF_TOKEN to a valid"),
    "forbidden": ("api", 403, "", "asks for a login that may read this model .HTTP 403.; set HF_TOKEN to a valid"),
    "out of order": ("api", 501, "", "answers HTTP 501; try again later, or name a mirror with HF_ENDPOINT"),
}


@pytest.mark.parametrize(("part", "status", "code", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_ends_in_one_line_that_says_what_to_do(hub_server, part, status, code, message):
    hub_server.refusals[part] = status, {"X-Error-Code": code} if code else {}
    with pytest.raises(InputError, match=f"^maker/small: .*{message}") as caught:
        hub.model_folder("maker/small")
    assert "cannot be reached" not in str(caught.value)


def test_files_that_a_data_set_does_not_have_are_told_with_those_that_it_has(hub_server):
    with pytest.raises(
        InputError, match=r"of rows named c/\*, found none .*; it has 'a/train.jsonl', 'a/test.jsonl', 'b/"
    ):
        hub.data_files("hub:maker/rows:c/*")


def test_without_a_connection_the_error_is_one_line(hub_server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="http://127.0.0.1:9 cannot be reached .*name a mirror with HF_ENDPOINT"):
        hub.model_folder("maker/small")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_files_that_cannot_be_written_here_are_no_fault_of_the_connection(hub_server, monkeypatch, number):
    def full(*args, **options):
        raise OSError(number, os.strerror(number), "/cache/blob")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(InputError, match=rf"^maker/small: its files cannot be written .*{os.strerror(number)}.*blob"):
        hub.model_folder("maker/small")


def test_a_folder_here_wins(hub_server, tmp_path):
    assert hub.is_model_name("maker/small") and resolve_model("maker/small").name == COMMIT
    (tmp_path / "maker").mkdir()
    assert not hub.is_model_name("maker/small") and resolve_model("maker/small") == Path("maker/small")
    assert not hub.is_model_name("small") and not hub.is_model_name("a/b/c") and not hub.is_model_name("../small")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("hub:maker/rows", ["a/train.jsonl", "b/train.jsonl"]),
        ("hub:maker/rows:a/*", ["a/test.jsonl", "a/train.jsonl"]),
        ("hub:maker/rows:a/test.jsonl", ["a/test.jsonl"]),
        ("hub:maker/rows@v1:b/*.jsonl", ["b/train.jsonl"]),
    ],
)
def test_files_of_a_data_set(hub_server, name, files):
    found = hub.data_files(name)
    assert ["/".join(Path(path).parts[-2:]) for path in found] == files
    assert all(not path.endswith(".py") for _, path in hub_server.asked)
    assert hub.pinned(f"x.jsonl,{name}").startswith("x.jsonl,hub:maker/rows@")


@pytest.mark.parametrize("name", ["hub:rows", "hub:maker/rows:*.py", "hub:maker/nothing", "hub:", "hub:a/b/c"])
def test_data_sets_without_rows_are_refused(hub_server, name):
    with pytest.raises(InputError):
        hub.data_files(name)


def test_a_reward_model_may_be_on_the_hub(hub_server):
    with pytest.raises(InputError, match="maker/none: no such folder here, and .* has no such model"):
        reward_of("maker/none", resolve_model)
    with pytest.raises(InputError, match="reward maker/my.py"):
        reward_of("maker/my.py", resolve_model)


def test_a_job_records_the_commit(hub_server):
    hub.model_folder("maker/small")
    hub.data_files("hub:maker/rows")
    settings = {"job": JobConfig(policy="maker/small", data="hub:maker/rows"), "run": RunSettings()}
    changed = with_commits(settings)
    assert changed["job"].policy == f"maker/small@{COMMIT}" and changed["job"].data == f"hub:maker/rows@{COMMIT}"
    assert hub.pinned(("a=hub:maker/rows", 3)) == (f"a=hub:maker/rows@{COMMIT}", 3)
    assert changed["run"] is settings["run"] and changed["job"].device == "auto"
