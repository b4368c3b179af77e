"""The child that downloads, with a hub on the loopback and without a hub."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.hub_download import exit_code_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": b"weights",
    "consolidated.safetensors": b"the same weights again",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"another copy",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
    "additional_chat_templates/notes.txt": b"words",
    "README.md": b"words",
    "modeling_own.py": b"code",
}
PICKLED = {name: body for name, body in FILES.items() if not name.endswith(".safetensors")} | {
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"pickle",
}
TEMPLATES = {f"additional_chat_templates/{name}.jinja" for name in ("tool_use", "rag")}
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


class Hub(ThreadingHTTPServer):
    """A hub with `org/open`, `org/pickled` without safetensors and, for the right token, `org/secret`.

    The hub notes each Authorization header.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        files = PICKLED if "org/pickled" in self.path else FILES
        self.server.tokens.add(token)
        path = self.path.partition("?")[0]
        if "org/secret" in path and token != "Bearer hf_right":
            self.reply(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
        elif path.startswith("/api/models/org/") and "missing" not in path:
            if "/revision/" in path and not path.endswith(("/main", "/" + COMMIT)):
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"})
            elif "/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": oid(body)} for name, body in files.items()
                ]
                self.reply(200, json.dumps(tree).encode())
            else:
                siblings = [{"rfilename": name} for name in files]
                info = {"id": path.split("/revision")[0][12:], "sha": COMMIT, "siblings": siblings}
                self.reply(200, json.dumps(info).encode())
        elif "/resolve/" in path and path.split(f"/resolve/{COMMIT}/")[-1] in files:
            body = files[path.split(f"/resolve/{COMMIT}/")[-1]]
            self.reply(200, body, {"ETag": f'"{oid(body)}"', "X-Repo-Commit": COMMIT})
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such model"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download(hub_url: str, cache: Path, *argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "textmill_launcher.hub_download", "--cache-dir", str(cache), *argv],
        env={**kept, "HF_ENDPOINT": hub_url, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_only_what_a_shard_and_a_router_read_is_fetched(hub: Hub, tmp_path: Path) -> None:
    done = download(hub.url, tmp_path, "--model-id", "org/open")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == COMMIT
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == WANTED | TEMPLATES
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_code_is_fetched_only_when_it_is_trusted(hub: Hub, tmp_path: Path) -> None:
    done = download(hub.url, tmp_path, "--model-id", "org/open", "--with-code")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*WANTED, "modeling_own.py"}


@pytest.mark.parametrize(
    ("model_id", "allowed", "weights"),
    [
        ("org/pickled", True, {"pytorch_model.bin", "pytorch_model.bin.index.json"}),
        ("org/pickled", False, {"pytorch_model.bin.index.json"}),
        ("org/open", True, {"model.safetensors"}),
    ],
)
def test_pickled_weights_are_fetched_only_when_allowed_and_nothing_else_is_there(
    hub: Hub, tmp_path: Path, model_id: str, allowed: bool, weights: set[str]
) -> None:
    done = download(hub.url, tmp_path, "--model-id", model_id, *(["--or-pickled"] if allowed else []))
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert found == {*WANTED - {"model.safetensors"}, *weights}


def test_second_download_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    first = download(hub.url, tmp_path, "--model-id", "org/open")
    second = download("http://127.0.0.1:9", tmp_path, "--model-id", "org/open", HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout


def test_token_opens_a_gated_model(hub: Hub, tmp_path: Path) -> None:
    refused = download(hub.url, tmp_path, "--model-id", "org/secret")
    assert refused.returncode == ExitCode.NO_ACCESS
    assert "HF_TOKEN" in refused.stderr
    done = download(hub.url, tmp_path, "--model-id", "org/secret", HF_TOKEN="hf_right")
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {None, "Bearer hf_right"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model-id", "org/missing"], "org/missing: the hub has no such model"),
        (["--model-id", "org/open", "--revision", "v9"], "no revision 'v9'"),
        (["--model-id", "org//open"], "not a hub id"),
    ],
)
def test_what_the_hub_lacks_is_said_in_one_line(hub: Hub, tmp_path: Path, argv: list[str], words: str) -> None:
    done = download(hub.url, tmp_path, *argv)
    assert done.returncode == ExitCode.NO_SUCH_MODEL
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_offline_without_the_model_says_what_to_try(tmp_path: Path) -> None:
    done = download("http://127.0.0.1:9", tmp_path, "--model-id", "org/open", HF_HUB_OFFLINE="1")
    assert done.returncode == ExitCode.HUB_FAILED
    assert "HF_HUB_OFFLINE" in done.stderr


def test_full_disk_has_a_code_of_its_own() -> None:
    assert exit_code_of(OSError(errno.ENOSPC, "No space left on device")) == ExitCode.DISK_FULL
    assert exit_code_of(OSError(errno.EACCES, "Permission denied")) == ExitCode.HUB_FAILED
