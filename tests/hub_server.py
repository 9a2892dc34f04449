"""A model hub on this machine: the part of the hub's HTTP protocol that downloads use, and its faults.

Files of 1 kB and more are in large file storage, as on the hub: their checksum is SHA-256, and the hub redirects to
another address for them. Others have git's SHA-1.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = 1024

Content = bytes | Path


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


@dataclass
class Hub:
    """What the server has, what it does wrong, and what it was asked for.

    Attributes:
        repositories: files of each, by path.
        revisions: names that a commit has.
        gated: repositories that need one of the tokens.
        broken: files that end after this many bytes, and how often.
        reset: files whose connection is reset after half of them, and how often.
        sent_instead: files for which other bytes of the same length are sent.
        sizes: sizes that are listed instead of the true ones.
        missing: files that are listed, but not there.
        slow: files that are sent at some megabytes a second.
        status: with which everything is answered.
        requests: method, path and range of each.
    """

    repositories: dict[str, Mapping[str, Content]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broken: dict[str, tuple[int, int]] = field(default_factory=dict)
    reset: dict[str, int] = field(default_factory=dict)
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    status: int | None = None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def downloads(self) -> list[str]:
        """The files whose data was asked for, in order, each as often as it was."""
        return [
            # /cdn/COMMIT/ORGANIZATION/NAME/FILE or /ORGANIZATION/NAME/resolve/COMMIT/FILE
            unquote(path).split("/", 5)[5]
            for method, path, _ in self.requests
            if method == "GET" and ("/resolve/" in path or path.startswith("/cdn/"))
        ]

    def ranges(self) -> list[str]:
        """The ranges that were asked for, without requests for whole files."""
        return [asked for method, _, asked in self.requests if method == "GET" and asked]

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables of a program that uses this hub, with a cache of its own and without a token."""
        return {
            "HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN": "", "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip

    def listing(self, repository: str) -> dict[str, Any]:
        """The answer about a repository, with the sizes and checksums of its files."""
        siblings = []
        for path, content in self.repositories[repository].items():
            data = _bytes(content)
            size = self.sizes.get(path, len(data))
            entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": git_sha1(data)}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
            siblings.append(entry)
        return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False,
                "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def tree(self, repository: str) -> list[dict[str, Any]]:
        """The same as the list of a tree."""
        return [
            {"type": "file", "path": e["rfilename"], "size": e["size"], "oid": e["blobId"]}
            | ({"lfs": {"oid": e["lfs"]["sha256"], "size": e["size"], "pointerSize": 130}} if "lfs" in e else {})
            for e in self.listing(repository)["siblings"]
        ]


def git_sha1(data: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _allowed(self, repository: str) -> bool:
        tokens = self.hub.gated.get(repository)
        if tokens is None or self.headers.get("Authorization", "").removeprefix("Bearer ") in tokens:
            return True
        status = 403 if self.headers.get("Authorization") else 401
        self._refuse(status, "GatedRepo", f"Access to model {repository} is restricted.")
        return False

    def _send(self, path: str, data: bytes, **headers: str) -> None:
        """The bytes that were asked for, or fewer where the file is to break off."""
        data = self.hub.sent_instead.get(path, data)
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit, times = self.hub.broken.get(path, (0, 0))
        if times:
            self.hub.broken[path] = (limit, times - 1)
            self.wfile.write(data[first : first + limit])
            self.wfile.flush()
            self.close_connection = True
            return
        if self.hub.reset.get(path, 0):
            self.hub.reset[path] -= 1
            self.wfile.write(data[first : first + (len(data) - first) // 2])
            self.wfile.flush()
            time.sleep(0.2)  # the client has read it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        step = 1 << 16 if path in self.hub.slow else max(1, len(data))
        for start in range(first, len(data), step):
            self.wfile.write(data[start : start + step])
            if path in self.hub.slow:
                time.sleep(0.02)

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        files = self.hub.repositories[repository]
        if revision not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        if path not in files or path in self.hub.missing:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data = _bytes(files[path])
        if len(data) < LARGE:
            self._send(path, data, ETag=f'"{git_sha1(data)}"', X_Repo_Commit=COMMIT)
            return
        self._answer(
            302, ETag=f'"{COMMIT}"', X_Repo_Commit=COMMIT, X_Linked_ETag=f'"{hashlib.sha256(data).hexdigest()}"',
            X_Linked_Size=str(self.hub.sizes.get(path, len(data))),
            Location=f"{self.hub.address.replace('127.0.0.1', 'localhost')}/cdn/{COMMIT}/{repository}/{path}",
        )  # fmt: skip

    def _route(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if self.hub.status is not None:
            self._refuse(self.hub.status, "", "this server fails")
            return
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[:2] == ["api", "models"]:
            repository, rest = "/".join(words[2:4]), words[4:]
        elif words[0] == "cdn":
            repository, rest = "/".join(words[2:4]), ["cdn", *words[4:]]
        else:
            repository, rest = "/".join(words[:2]), words[2:]
        if rest[:1] == ["cdn"]:  # another host, which gets no token
            path = "/".join(rest[1:])
            self._send(path, _bytes(self.hub.repositories[repository][path]))
        elif repository not in self.hub.repositories:
            self._refuse(401 if not self.headers.get("Authorization") else 404, "RepoNotFound", "Repository not found")
        elif self._allowed(repository):
            self._repository(repository, rest)

    def _repository(self, repository: str, rest: list[str]) -> None:
        if rest[:1] == ["resolve"]:
            self._resolve(repository, rest[1], "/".join(rest[2:]))
        elif rest[:1] in (["revision"], ["tree"]) and "/".join(rest[1:]) not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif rest[:1] == ["tree"]:
            self._json(self.hub.tree(repository))
        else:
            self._json(self.hub.listing(repository))

    do_GET = do_HEAD = _route


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories on a free port, in threads of this process."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def folder_files(folder: Path) -> dict[str, Content]:
    """The files of a folder, for a repository."""
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {path.relative_to(folder).as_posix(): path for path in paths}
