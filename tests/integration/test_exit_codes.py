"""Each class of failure ends a real launcher with its code, and the first line names rank, cause and fix."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from textmill_launcher.exit_codes import ExitCode

from tests.fakes.processes import START_LIMIT_S, launched
from tests.fakes.tiny_models import make_tiny_llama

KV_BYTES = str(8 * 1024 * 1024)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "model")


def cut_weights(model: Path) -> list[str]:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return []


def rename_type(model: Path) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "no_such_architecture"}))
    return []


def leave_no_memory(model: Path) -> list[str]:
    return ["--kv-cache-bytes", "1"]


def ask_for_a_gpu(model: Path) -> list[str]:
    return ["--device", "cuda", "--num-shard", "1"]


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (cut_weights, ExitCode.BAD_FILES, ["files of the model are missing or damaged", "launcher download"]),
        (rename_type, ExitCode.UNSUPPORTED_MODEL, ["the model cannot be served", "docs/models.md"]),
        (leave_no_memory, ExitCode.OUT_OF_MEMORY, ["memory ran out", "--kv-cache-bytes"]),
        (ask_for_a_gpu, ExitCode.WRONG_SETTING, ["a flag, a variable or a key", "change what the message names"]),
    ],
    ids=["weights", "type", "memory", "device"],
)
def test_shard_that_cannot_start_ends_the_launcher_with_the_code_of_the_cause(
    harm: Callable[[Path], list[str]], code: ExitCode, words: list[str], model: Path, tmp_path: Path
) -> None:
    import torch

    if harm is ask_for_a_gpu and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so that asking for one is no mistake")
    flags = harm(model)
    if "--kv-cache-bytes" not in flags:
        flags += ["--kv-cache-bytes", KV_BYTES]
    with launched(["--model-id", str(model), "--dtype", "float32", *flags], tmp_path) as server:
        assert server.wait_exit(START_LIMIT_S) == code
        [first] = [line for line in server.log_text.splitlines() if f"ended with exit code {code}" in line]
    assert "shard rank 0" in first
    assert "while starting; what to try:" in first
    assert all(word in first for word in words)


def test_several_shards_of_a_model_without_generation_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with launched(["--model-id", str(tmp_path / "model"), "--num-shard", "2"], tmp_path) as server:
        assert server.wait_exit(START_LIMIT_S) == ExitCode.WRONG_SETTING
        assert "a model of the task image-classification has one shard: give --num-replicas 2" in server.log_text


def test_taken_port_has_a_code_of_its_own(model: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with launched(["--model-id", str(model), "--kv-cache-bytes", KV_BYTES], tmp_path, port=port) as server:
            assert server.wait_exit(START_LIMIT_S) == ExitCode.PORT_TAKEN
            log_text = server.log_text
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; what to try: another --port" in log_text
    assert "started, pid" not in log_text


def test_file_of_a_flag_that_is_not_there_ends_the_start_before_a_child_is_started(model: Path, tmp_path: Path) -> None:
    with launched(["--model-id", str(model), "--api-key-file", "/no/such/file"], tmp_path) as server:
        assert server.wait_exit(START_LIMIT_S) == ExitCode.WRONG_SETTING
        log_text = server.log_text
    assert "--api-key-file /no/such/file cannot be read: No such file or directory" in log_text
    assert "started, pid" not in log_text


def test_heads_that_cannot_be_divided_end_the_start_before_a_shard_is_started(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "nine", hidden=36, heads=9, kv_heads=3)
    with launched(["--model-id", str(model), "--num-shard", "2"], tmp_path) as server:
        assert server.wait_exit(START_LIMIT_S) == ExitCode.UNSUPPORTED_MODEL
        log_text = server.log_text
    assert "cannot be divided among 2 shards; --num-shard can be 1, 3, 9" in log_text
    assert "started, pid" not in log_text


def test_folder_without_weights_and_name_without_a_folder_are_told_apart(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    for name, code, words in (
        (str(model), ExitCode.BAD_FILES, "holds no *.safetensors"),
        ("/no/such/folder", ExitCode.NO_SUCH_MODEL, "there is no such folder"),
    ):
        with launched(["--model-id", name], tmp_path) as server:
            assert server.wait_exit(START_LIMIT_S) == code
            assert words in server.log_text
