"""A hub of models on the loopback: repositories, tokens, ranges, and the faults of a real one."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RIGHT_TOKEN = "hf_right"
NO_SUCH_MODEL = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such model"}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"}


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` downloads of a file.

    `stall` and `cut` send only the first `after_bytes` bytes: then nothing more comes, or the connection ends. `lie`
    says a size that is larger than the file by `after_bytes`. `status` answers with that status instead of the file.
    """

    kind: str  # "stall", "cut", "lie" or "status"
    after_bytes: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1


class Hub(ThreadingHTTPServer):
    """The server. Notes each Authorization header, and each GET of a file with its Range header."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]], *, secret: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.secret = secret  # repositories that need the right token
        self.tokens: set[str | None] = set()
        self.faults: dict[str, Fault] = {}  # by the name of a file
        self.status_of_api: Fault | None = None  # for all calls of the API
        self.fetched: list[tuple[str, str | None]] = []
        self.released = threading.Event()  # ends all stalls

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub(repositories: Mapping[str, Mapping[str, bytes]], *, secret: tuple[str, ...] = ()) -> Iterator[Hub]:
    """Run a hub until the block is left."""
    with Hub(repositories, secret=secret) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        self.server.tokens.add(token)
        path = self.path.partition("?")[0].replace("%2F", "/").lstrip("/")
        is_api = path.startswith("api/models/")
        words = path.removeprefix("api/models/").split("/")
        repository = "/".join(words[:2])
        files = self.server.repositories.get(repository)
        rest = "/".join(words[2:])
        if is_api and self.server.status_of_api is not None:
            self._reply(self.server.status_of_api.status, b"", self.server.status_of_api.headers)
        elif repository in self.server.secret and token != f"Bearer {RIGHT_TOKEN}":
            self._reply(401, b"", GATED)
        elif files is None:
            self._reply(404, b"", NO_SUCH_MODEL)
        elif is_api:
            self._describe(repository, files, rest)
        else:
            self._send_file(files, rest)

    def _describe(self, repository: str, files: Mapping[str, bytes], rest: str) -> None:
        revision = rest.partition("/")[2].partition("/")[0] or "main"
        if revision not in ("main", COMMIT):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"})
        elif rest.startswith("tree/"):
            tree: list[dict[str, Any]] = [
                {"type": "file", "path": name, "size": len(body), "oid": git_id(body), **_large(name, body)}
                for name, body in files.items()
            ]
            self._reply(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name} for name in files]
            self._reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())

    def _send_file(self, files: Mapping[str, bytes], rest: str) -> None:
        revision, _, name = rest.removeprefix("resolve/").partition("/")
        if name not in files or revision not in ("main", COMMIT):
            code = "EntryNotFound" if revision in ("main", COMMIT) else "RevisionNotFound"
            self._reply(404, b"", {"X-Error-Code": code, "X-Error-Message": "not there"})
            return
        body = files[name]
        facts = {"ETag": f'"{etag(name, body)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._reply(200, body, facts)
            return
        asked = self.headers.get("Range")
        self.server.fetched.append((name, asked))
        start, status = 0, 200
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            facts["Content-Range"] = f"bytes {first}-{last or len(body) - 1}/{len(body)}"
            body = body[start : int(last) + 1 if last else None]
        fault = self.server.faults.get(name)
        if fault is None or fault.times <= 0 or start >= fault.after_bytes > 0:
            self._reply(status, body, facts)
            return
        fault.times -= 1
        self._misbehave(fault, status, body, facts)

    def _misbehave(self, fault: Fault, status: int, body: bytes, facts: Mapping[str, str]) -> None:
        if fault.kind == "status":
            self._reply(fault.status, b"", fault.headers)
            return
        size = len(body) + (fault.after_bytes if fault.kind == "lie" else 0)
        self._begin(status, size, facts)
        with suppress(OSError):
            self.wfile.write(body if fault.kind == "lie" else body[: fault.after_bytes])
            self.wfile.flush()
            if fault.kind == "stall":
                self.server.released.wait(120)
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._begin(status, len(body), headers or {})
        if self.command == "GET":
            with suppress(OSError):
                self.wfile.write(body)

    def _begin(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(size), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def git_id(body: bytes) -> str:
    """Return the id that git gives a file, which is the hub's checksum of small files."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def etag(name: str, body: bytes) -> str:
    """Return the hub's checksum: SHA-256 of large files, git's id of small ones."""
    return hashlib.sha256(body).hexdigest() if _large(name, body) else git_id(body)


def _large(name: str, body: bytes) -> dict[str, Any]:
    """Return what the hub says of a file that it keeps outside of git."""
    if not name.endswith((".safetensors", ".bin")):
        return {}
    return {"lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}}


def wait_for(hub: Hub, name: str, limit_s: float = 30.0) -> None:
    """Wait until somebody fetches the file."""
    deadline_s = time.monotonic() + limit_s
    while not any(fetched == name for fetched, _ in list(hub.fetched)):
        assert time.monotonic() < deadline_s, f"nobody fetches {name}"
        time.sleep(0.02)
