"""Disks that are full at a download and at a start: the exit code, and a sentence that names the folder."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textmill_launcher.exit_codes import ExitCode

from tests.fakes.gguf_files import make_model, write_gguf
from tests.fakes.hub import Hub, running_hub
from tests.fakes.small_disk import can_mount, run_on_small_disk

FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": bytes(500_000)}
SMALL_KIB = 200
LAUNCHER = [sys.executable, "-m", "textmill_launcher"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not can_mount(folder):
        pytest.skip("this user may not mount a small disk")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub({"org/open": FILES}) as server:
        yield server


def environ(hub: Hub, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def test_download_onto_a_full_disk_names_the_folder_and_what_is_missing(hub: Hub, disk: Path, tmp_path: Path) -> None:
    command = [*LAUNCHER, "download", "org/open", "--huggingface-hub-cache", str(disk)]
    done = run_on_small_disk(command, disk, num_kib=SMALL_KIB, environ=environ(hub, tmp_path))
    assert done.returncode == ExitCode.DISK_FULL
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"org/open: the disk of {disk} is full: 0.2 MiB are free")
    assert "--huggingface-hub-cache" in last
    assert "goes on where this one ended" in last
    assert "Warning" not in done.stderr


def test_failure_for_a_full_disk_is_json_where_the_log_is_json(hub: Hub, disk: Path, tmp_path: Path) -> None:
    command = [*LAUNCHER, "download", "org/open", "--json-output", "--huggingface-hub-cache", str(disk)]
    done = run_on_small_disk(command, disk, num_kib=SMALL_KIB, environ=environ(hub, tmp_path))
    assert done.returncode == ExitCode.DISK_FULL
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert last["level"] == "ERROR"
    assert "is full" in last["fields"]["message"]


def test_start_that_downloads_onto_a_full_disk_ends_with_its_code(hub: Hub, disk: Path, tmp_path: Path) -> None:
    command = [*LAUNCHER, "--model-id", "org/open", "--huggingface-hub-cache", str(disk)]
    done = run_on_small_disk(command, disk, num_kib=SMALL_KIB, environ=environ(hub, tmp_path))
    assert done.returncode == ExitCode.DISK_FULL
    [first] = [line for line in done.stdout.splitlines() if "ended with exit code 14" in line]
    assert "download ended with exit code 14 (the disk is full); what to try: room on the disk" in first


def test_start_that_converts_onto_a_full_disk_ends_with_its_code(hub: Hub, disk: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    command = [*LAUNCHER, "--model-id", str(tmp_path / "model.gguf"), "--conversion-cache", str(disk)]
    done = run_on_small_disk(command, disk, num_kib=8, environ=environ(hub, tmp_path))
    assert done.returncode == ExitCode.DISK_FULL
    [first] = [line for line in done.stdout.splitlines() if "ended with exit code 14" in line]
    assert "convert ended with exit code 14 (the disk is full); what to try: room on the disk" in first
    assert "--conversion-cache" in first
