"""The child that downloads, with a hub on the loopback and without a hub."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.hub_download import exit_code_of

from tests.fakes.hub import COMMIT, Hub, running_hub

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
    "modules.json": b"[]",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"weights of a module",
    "2_Dense/pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"another format",
    "modeling_own.py": b"code",
}
PICKLED = {name: body for name, body in FILES.items() if not name.endswith(".safetensors")} | {
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"pickle",
}
FOLDERS = {
    *(f"additional_chat_templates/{name}.jinja" for name in ("tool_use", "rag")),
    *("1_Pooling/config.json", "2_Dense/model.safetensors"),
}
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md", "modules.json"}


REPOSITORIES = {"org/open": FILES, "org/pickled": PICKLED, "org/secret": FILES}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub(REPOSITORIES, secret=("org/secret",)) as server:
        yield server


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
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == WANTED | FOLDERS
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
    assert exit_code_of(OSError(errno.EACCES, "Permission denied")) == ExitCode.HUB_FAILED  # by the network
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        assert exit_code_of(OSError(number, os.strerror(number), "/models/hub")) == ExitCode.WRONG_SETTING


def test_cache_that_cannot_be_written_is_named_with_the_flag(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = download(hub.url, tmp_path / "file" / "hub", "--model-id", "org/open")
    assert done.returncode == ExitCode.WRONG_SETTING
    assert f"org/open: the cache {tmp_path}/file/hub cannot be written ([Errno 20] Not a directory" in done.stderr
    assert "--huggingface-hub-cache" in done.stderr
