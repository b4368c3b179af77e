"""`launcher plan` as a process: a folder, a model of the hub by range requests, and what it never loads."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.errors import SettingsError
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.plan.command import parse_bytes
from textmill_launcher.settings import load_settings

from tests.fakes.hub import running_hub
from tests.fakes.tiny_models import make_tiny_llama

MIB = 1024**2
PROBE = """
import json, sys
from textmill_launcher.__main__ import main
code = main(sys.argv[1:])
loaded = {"torch", "transformers", "grpc", "numpy"} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), hidden=256, heads=4, kv_heads=2, layers=3, mlp=512)


def plan(*argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", PROBE, "plan", "--device", "cpu", "--dtype", "float32", *argv],
        env={**kept, "NO_PROXY": "127.0.0.1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def as_json(*argv: str, **environ: str) -> dict[str, Any]:
    done = plan(*argv, "--json", **environ)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_plan_of_a_folder_has_the_numbers_of_the_model(folder: Path) -> None:
    shown = as_json("--model-id", str(folder), "--device-memory", "100MiB", "--memory-fraction", "0.5")
    needs = shown["fit"]["needs"]
    assert needs["kv_bytes_per_token"] == 3 * 2 * 2 * 64 * 4  # layers, keys and values, heads, head size, float32
    weights = 2 * 320 * 256 + 256 + 3 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512 + 2 * 256)
    assert needs["weight_bytes"] == 4 * weights
    assert shown["fit"]["budget_bytes"] == 50 * MIB
    assert shown["working_num_shards"] == [1, 2, 4]
    assert shown["fit"]["fits"]


def test_text_says_the_same_and_its_command_line_is_one_of_the_launcher(folder: Path) -> None:
    adapters = ("--lora-adapters", "poet=/adapters/poet,org/clerk@v2", "--lora-memory-bytes", str(8 * MIB))
    done = plan("--model-id", str(folder), "--device-memory", "100MiB", "--max-total-tokens", "500", *adapters)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{folder}: llama, float32 on cpu, 1 shard"
    for words in ("  weights ", "  largest step ", "  keys and values ", "longest context: 512 tokens", "fits"):
        assert any(line.startswith(words) for line in lines), done.stdout
    assert [line.split()[:3] for line in lines if line.startswith("  adapters ")] == [["adapters", "8.0", "MiB"]]
    [command] = [line.removeprefix("start: ") for line in lines if line.startswith("start: ")]
    settings = load_settings(shlex.split(command)[1:], {"HOME": "/h"})
    assert (settings.model_id, settings.max_total_tokens) == (str(folder), 500)
    assert settings.lora_adapters == ("poet=/adapters/poet", "org/clerk@v2")
    assert settings.lora_memory_bytes == 8 * MIB


def test_command_line_keeps_the_flags_of_the_memory(folder: Path) -> None:
    given = ("--kv-cache-bytes", "3000000", "--memory-fraction", "0.3")
    shown = as_json("--model-id", str(folder), *given)
    settings = load_settings(shown["suggested_flags"], {"HOME": "/h"})
    assert (settings.kv_cache_bytes, settings.memory_fraction) == (3_000_000, 0.3)


def test_command_line_keeps_all_flags_that_were_given(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_best_of = 3\n")
    given = ("--num-replicas", "2", "--block-size", "8", "--max-input-tokens", "90", "--served-model-name", "a,b")
    given += ("--no-graphs", "--max-batch-prefill-tokens", "700", "--config", str(tmp_path / "config.toml"))
    shown = as_json("--model-id", str(folder), *given, "--api-key", "secret")
    assert "secret" not in json.dumps(shown)
    settings = load_settings(shown["suggested_flags"], {"HOME": "/h"})
    assert (settings.num_replicas, settings.block_size, settings.max_input_tokens) == (2, 8, 90)
    assert (settings.served_model_name, settings.no_graphs, settings.max_best_of) == (("a", "b"), True, 3)
    assert (settings.max_batch_prefill_tokens, settings.max_step_tokens) == (700, 956)  # and room for 256 decodes


def test_command_line_has_room_for_all_requests_at_once(folder: Path) -> None:
    shown = as_json("--model-id", str(folder), "--concurrency", "300", "--max-total-tokens", "16")
    settings = load_settings(shown["suggested_flags"], {"HOME": "/h"})
    assert (settings.num_slots, settings.max_concurrent_requests) == (300, 300)
    assert shown["fit"]["reductions"] == []


def test_replicas_share_the_memory_of_a_cpu_and_each_has_a_gpu(folder: Path) -> None:
    memory = ("--model-id", str(folder), "--device-memory", "1GiB")
    for device, share in (("cpu", 2), ("cuda", 1)):
        one = as_json(*memory, "--device", device)["fit"]["budget_bytes"]
        assert as_json(*memory, "--device", device, "--num-replicas", "2")["fit"]["budget_bytes"] == one // share


def test_number_of_shards_that_no_shard_can_load_is_refused(folder: Path) -> None:
    done = plan("--model-id", str(folder), "--num-shard", "3")
    assert done.returncode == ExitCode.UNSUPPORTED_MODEL
    assert "4 attention heads with 2 key/value heads cannot be divided among 3 shards; --num-shard can be 1, 2, 4" in (
        done.stderr
    )


def test_keys_and_values_of_8_bits_take_a_quarter_of_fp32_and_the_command_line_keeps_them(folder: Path) -> None:
    plain = as_json("--model-id", str(folder))
    shown = as_json("--model-id", str(folder), "--kv-cache-dtype", "fp8_e4m3fn")
    assert shown["dtype"] == "float32"
    needs, plain_needs = shown["fit"]["needs"], plain["fit"]["needs"]
    assert needs["kv_bytes_per_token"] * 4 == plain_needs["kv_bytes_per_token"]
    assert load_settings(shown["suggested_flags"], {"HOME": "/h"}).kv_cache_dtype == "fp8_e4m3fn"


def test_what_does_not_fit_is_reduced_and_at_last_refused(folder: Path) -> None:
    tight = ("--model-id", str(folder), "--memory-fraction", "1", "--max-total-tokens", "512", "--concurrency", "64")
    shown = as_json(*tight, "--device-memory", "40MiB")
    assert [text.partition(" from ")[0] for text in shown["fit"]["reductions"]] == [
        "the requests at once (--max-concurrent-requests)"
    ]
    assert 1 <= shown["fit"]["num_at_once"] < 64
    done = plan(*tight, "--device-memory", "8MiB")
    assert done.returncode == ExitCode.OUT_OF_MEMORY
    assert "does not fit, whatever is reduced" in done.stdout
    assert "start:" not in done.stdout


def test_model_of_the_hub_is_planned_from_headers_alone(folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    weights = files["model.safetensors"]
    with running_hub({"org/tiny": files}) as hub:
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        shown = as_json("--model-id", "org/tiny", "--device-memory", "100MiB", **environ)
        ranges = [asked for name, asked in hub.fetched if name == "model.safetensors"]
        assert ranges
        for asked in ranges:
            assert asked is not None, "the whole file was fetched"
            first, _, last = asked.removeprefix("bytes=").partition("-")
            assert int(last) - int(first) < len(weights) // 2
        assert "tokenizer.json" not in [name for name, _ in hub.fetched]
        missing = plan("--model-id", "org/none", **environ)
    local = as_json("--model-id", str(folder), "--device-memory", "100MiB")
    assert shown["fit"] == local["fit"]
    assert missing.returncode == ExitCode.NO_SUCH_MODEL
    assert "the hub has no such model" in missing.stderr


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--model-id", "/no/such/folder"], ExitCode.NO_SUCH_MODEL, "there is no such folder"),
        (["--device", "cuda", "--model-id", "FOLDER"], ExitCode.WRONG_SETTING, "--device-memory 80GiB"),
        (["--concurrency", "0", "--model-id", "FOLDER"], ExitCode.WRONG_SETTING, "--concurrency is '0'"),
        (["--concurency", "3"], ExitCode.WRONG_SETTING, "did you mean --concurrency?"),
    ],
)
def test_mistakes_are_named(argv: list[str], code: ExitCode, words: str, folder: Path) -> None:
    done = plan(*(str(folder) if word == "FOLDER" else word for word in argv), PATH="/nowhere")
    assert done.returncode == code
    assert words in done.stderr


def test_a_model_that_writes_no_text_is_refused_with_its_task(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = plan("--model-id", str(tmp_path), "--num-shard", "2")
    assert done.returncode == ExitCode.UNSUPPORTED_MODEL
    assert "text-classification" in done.stderr
    assert "--num-replicas" in done.stderr


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("80GiB", 80 * 1024**3), ("24G", 24 * 10**9), ("1.5 GiB", 1536 * MIB), ("512mib", 512 * MIB), ("1000", 1000)],
)
def test_bytes_are_read_in_the_usual_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "many", "-3G", "0", "3X"])
def test_other_words_are_no_bytes(text: str) -> None:
    with pytest.raises(SettingsError, match="--device-memory is"):
        parse_bytes(text)
