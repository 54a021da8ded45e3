"""A stand-in for the part of a model hub's HTTP interface that publishing and fetching take; no real hub was asked.

One server on loopback: repositories in memory, one token, files below 5 MB inside the commit and larger ones as LFS
objects, as huggingface_hub 2.4 sends them with HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
_INLINE = 5_000_000


@dataclass
class Hub:
    """What the server holds: files by repository and path, LFS objects by hash."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def commit_of(self, name: str) -> str:
        listed = sorted(
            (path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[name].items()
        )
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A hub without repositories, until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.repositories.setdefault(name, {})
            return self._json({"url": f"{self.hub.address}/{name}", "name": name})
        if "/info/lfs/objects/batch" in path:
            found = [
                {**item, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": found})
        name, action = _name(path)
        if action.startswith("preupload/"):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["size"] > _INLINE else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        return self._commit(name, body)

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif change["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = self.hub.commit_of(name)
        self._json(
            {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._json({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name, action = _name(path)
            files = self.hub.repositories.get(name)
            if files is None:
                return self._missing("RepoNotFound")
            if action.startswith("revision/") and action != "revision/main":
                return self._missing("RevisionNotFound")
            if action.startswith("tree/"):
                listed = [
                    {"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()
                ]
                return self._json(listed)
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": self.hub.commit_of(name), "siblings": siblings, "tags": []})
        owner, repository, _, _, *rest = path.removeprefix("/").split("/")
        name = f"{owner}/{repository}"
        data = self.hub.repositories.get(name, {}).get("/".join(rest))
        if data is None:
            return self._missing("EntryNotFound")
        return self._send(
            data, headers={"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.hub.commit_of(name)}
        )

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _missing(self, code: str) -> None:
        self._send(b"{}", 404, {"X-Error-Code": code})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _name(path: str) -> tuple[str, str]:
    """Repository and what is asked of it: /api/models/owner/name/action."""
    owner, name, *action = path.removeprefix("/api/models/").split("/")
    return f"{owner}/{name}", "/".join(action)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
