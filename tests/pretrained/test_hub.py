"""Names of the hub against a small server in a thread. No test reaches another machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from minirlhf.errors import InputError
from minirlhf.jobs.checks import with_commits
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.settings import JobConfig
from minirlhf.pretrained import hub
from minirlhf.training.run import RunSettings

COMMIT, OLD = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """A hub with a few repositories: {"models/OWNER/NAME" | "datasets/OWNER/NAME": {path: bytes}}."""

    def __init__(self, repos):
        self.repos, self.asked, self.revisions = repos, [], {"main": COMMIT, "v1": OLD, COMMIT: COMMIT, OLD: OLD}
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.asked.append((self.command, path))
        if path.startswith("api/"):
            kind, owner, name, what, revision, *_ = [*path.removeprefix("api/").split("/"), "", ""]
            files = self.server.repos.get(f"{kind}/{owner}/{name}")
            if files is None:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = self.server.revisions.get(revision or "main")
            if commit is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if what == "tree":
                entries = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
                return self.send(200, json.dumps(entries).encode())
            siblings = [{"rfilename": path} for path in files]
            return self.send(200, json.dumps({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings}).encode())
        repo, _, rest = path.partition("/resolve/")
        repo = repo if repo.startswith("datasets/") else f"models/{repo}"
        revision, _, file = rest.partition("/")
        data = self.server.repos.get(repo, {}).get(file)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.send(200, data, {"X-Repo-Commit": self.server.revisions[revision], "ETag": etag})

    do_HEAD = do_GET

    def send(self, code, data, headers=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    rows = b'{"prompt": "p", "response": "r"}\n'
    server = Hub(
        {
            "models/maker/small": {
                "config.json": b"{}",
                "model.safetensors": b"weights",
                "chat_template.jinja": b"{{ messages }}",
                "merges.txt": b"",
                "pytorch_model.bin": b"pickle",
                "modeling_small.py": b"raise SystemExit",
                "original/model.safetensors": b"twice",
            },
            "models/maker/empty": {"README.md": b"nothing"},
            "datasets/maker/rows": {
                "a/train.jsonl": rows,
                "a/test.jsonl": rows,
                "b/train.jsonl": rows,
                "load.py": b"raise SystemExit",
            },
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    hub._fetch.cache_clear()
    hub._commits.clear()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_arrives_without_code_and_pickles(server):
    folder = hub.model_folder("maker/small")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "model.safetensors", "chat_template.jinja", "merges.txt"}
    assert folder.name == COMMIT
    assert hub.pinned("maker/small") == f"maker/small@{COMMIT}"


def test_a_revision_and_a_second_call(server):
    folder = hub.model_folder("maker/small@v1")
    assert folder.name == OLD and hub.pinned("maker/small@v1") == f"maker/small@{OLD}"
    asked = len(server.asked)
    assert hub.model_folder("maker/small@v1") == folder and len(server.asked) == asked  # once in a process
    assert hub.model_folder(f"maker/small@{OLD}") == folder  # the pinned name leads to the same files


def test_files_that_are_here_need_no_connection(server, monkeypatch):
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
def test_unknown_names_end_in_one_line(server, name, message):
    with pytest.raises(InputError, match=message):
        hub.model_folder(name)


def test_without_a_connection_the_error_is_one_line(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="http://127.0.0.1:9 cannot be reached .*name a mirror with HF_ENDPOINT"):
        hub.model_folder("maker/small")


def test_a_folder_here_wins(server, tmp_path):
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
def test_files_of_a_data_set(server, name, files):
    found = hub.data_files(name)
    assert ["/".join(path.parts[-2:]) for path in found] == files
    assert all(not path.endswith(".py") for _, path in server.asked)
    assert hub.pinned(f"x.jsonl,{name}").startswith("x.jsonl,hub:maker/rows@")


@pytest.mark.parametrize("name", ["hub:rows", "hub:maker/rows:*.py", "hub:maker/nothing", "hub:", "hub:a/b/c"])
def test_data_sets_without_rows_are_refused(server, name):
    with pytest.raises(InputError):
        hub.data_files(name)


def test_a_job_records_the_commit(server):
    hub.model_folder("maker/small")
    hub.data_files("hub:maker/rows")
    settings = {"job": JobConfig(policy="maker/small", data="hub:maker/rows"), "run": RunSettings()}
    changed = with_commits(settings)
    assert changed["job"].policy == f"maker/small@{COMMIT}" and changed["job"].data == f"hub:maker/rows@{COMMIT}"
    assert hub.pinned(("a=hub:maker/rows", 3)) == (f"a=hub:maker/rows@{COMMIT}", 3)
    assert changed["run"] is settings["run"] and changed["job"].device == "auto"
