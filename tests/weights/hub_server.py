"""A stand-in for the Hugging Face Hub: repositories in memory, over HTTP, as far as ``huggingface_hub`` asks."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]
    gated: set[str]
    asked: list[str]
    broken: dict[str, str]  # repositories by what the server does instead of answering
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        for name, fault in self.broken.items():
            if f"/{name}/" in f"{self.path}/" and self._break(fault):
                return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:\?.*)?", self.path):
            if (files := self._files(match[1], match[2])) is not None:
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self._answer({"id": match[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)(?:\?.*)?", self.path):
            if (files := self._files(match[1], match[2])) is not None:
                self._answer([self._entry(name, content) for name, content in files.items()])
            return
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            if (files := self._files(match[1], match[2])) is not None:
                if match[3] not in files:
                    self._refuse(404, "EntryNotFound")
                else:
                    self._send(files[match[3]])
            return
        self._refuse(404, "Unknown")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            name = f"{json.loads(body)['organization']}/{json.loads(body)['name']}"
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+)(?:\?.*)?", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.repositories[match[1]][value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._answer({})

    def _break(self, fault: str) -> bool:
        """Answers as a broken server does; returns whether this request is answered."""
        if fault == "error":
            self._refuse(500, "")
        elif fault == "page":
            self.send_response(200)
            self._body(b"<html>Please log in</html>", "text/html")
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "damage" and self.command == "GET" and "/resolve/" in self.path:
            repository, _, _, name = self.path.lstrip("/").rsplit("/", 3)
            content = self.repositories[repository][name]
            self._send(content, b"?" + content[1:])
        else:
            return False
        return True

    def _files(self, repository: str, revision: str | None) -> dict[str, bytes] | None:
        if repository in self.gated:
            self._refuse(403, "GatedRepo")
        elif repository not in self.repositories:
            self._refuse(401, "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return self.repositories[repository]
        return None

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}

    def _refuse(self, status: int, code: str) -> None:
        body = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self._body(body, "application/json")

    def _answer(self, content: Any) -> None:
        self.send_response(200)
        self._body(json.dumps(content).encode(), "application/json")

    def _send(self, content: bytes, sent: bytes | None = None) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_git_hash(content)}"')
        self._body(content if sent is None else sent, "application/octet-stream")

    def _body(self, body: bytes, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(
    repositories: dict[str, dict[str, bytes]], gated: set[str], broken: dict[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories; yields the address, and the list of paths that were asked for."""
    asked: list[str] = []
    members = {"repositories": repositories, "gated": gated, "asked": asked, "broken": {} if broken is None else broken}
    handler = type("Handler", (Handler,), members)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
