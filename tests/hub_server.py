"""A small server that answers as the hub does, in a thread. No test reaches another machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT, OLD = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """A hub with a few repositories: {"models/OWNER/NAME" | "datasets/OWNER/NAME": {path: bytes}}.

    refusals: part of an address -> (HTTP status, its headers) of the answer to each address with this part.
    """

    def __init__(self, repos):
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
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
        for part, (status, headers) in self.server.refusals.items():
            if part in path:
                return self.send(status, b"{}", headers)
        if path.startswith("api/"):
            kind, owner, name, what, revision, *_ = [*path.removeprefix("api/").split("/"), *[""] * 5]
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
