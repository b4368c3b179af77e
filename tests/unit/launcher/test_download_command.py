"""`launcher download` against a hub that stalls, cuts, lies about sizes, changes bytes and refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from textmill_launcher.exit_codes import ExitCode

from tests.fakes.hub import COMMIT, GATED, Fault, Hub, running_hub, wait_for
from tests.fakes.no_names import trapped
from tests.fakes.processes import wait_until

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"words",
    "notes.txt": b"words",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub({"org/open": FILES, "org/secret": FILES}, secret=("org/secret",)) as server:
        yield server


def command(hub_url: str, cache: Path, *argv: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    words = [sys.executable, "-m", "textmill_launcher", "download", "--huggingface-hub-cache", str(cache), *argv]
    wanted = {"HF_ENDPOINT": hub_url, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "HOME": str(cache)}
    return words, {**kept, **wanted, **environ}


def download(hub_url: str, cache: Path, *argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    words, env = command(hub_url, cache, *argv, **environ)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


def weights_of(done: "subprocess.CompletedProcess[str]") -> bytes:
    assert done.returncode == 0, done.stderr
    return (Path(done.stdout.splitlines()[-1]) / "model.safetensors").read_bytes()


def test_model_is_fetched_and_verified_and_its_folder_is_the_last_line(hub: Hub, tmp_path: Path) -> None:
    done = download(hub.url, tmp_path, "org/open")
    assert weights_of(done) == WEIGHTS
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == COMMIT
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert "2.9 MiB to fetch" in done.stderr


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["org/absent"], ExitCode.NO_SUCH_MODEL, "org/absent"),
        ([], ExitCode.WRONG_SETTING, "the model is missing"),
        (["org/open", "--port", "no"], ExitCode.WRONG_SETTING, "--port"),
    ],
)
def test_a_failure_is_json_where_the_log_is_json(
    hub: Hub, tmp_path: Path, argv: list[str], code: ExitCode, words: str
) -> None:
    by_flag = download(hub.url, tmp_path, *argv, "--json-output")
    by_variable = download(hub.url, tmp_path, *argv, JSON_OUTPUT="1")
    for done in (by_flag, by_variable):
        assert done.returncode == code
        *_, line = map(json.loads, done.stderr.splitlines())
        assert line["level"] == "ERROR"
        assert words in line["fields"]["message"]


def test_news_are_json_where_the_log_is_json(hub: Hub, tmp_path: Path) -> None:
    done = download(hub.url, tmp_path, "org/open", "--json-output")
    assert weights_of(done) == WEIGHTS
    [line] = map(json.loads, done.stderr.splitlines())
    assert line["fields"] == {"message": "2.9 MiB to fetch"}


def test_patterns_choose_the_files(hub: Hub, tmp_path: Path) -> None:
    done = download(hub.url, tmp_path, "org/open", "--include", "*.json", "--include", "*.txt", "--exclude", "tok*")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path(done.stdout.splitlines()[-1]).iterdir()} == {"config.json", "notes.txt"}


def test_stalled_transfer_is_ended_and_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = Fault("stall", after_bytes=1_500_000)
    # The hub's library itself would wait for ever, as `hf_xet` does.
    done = download(hub.url, tmp_path, "org/open", "--stall-timeout-s", "3", HF_HUB_DOWNLOAD_TIMEOUT="100")
    assert weights_of(done) == WEIGHTS
    assert "no byte came for 3 s: fetching goes on by plain HTTP (attempt 2 of 5)" in done.stderr
    ranges = [asked for name, asked in hub.fetched if name == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[-1] is None or int(ranges[-1].removeprefix("bytes=").partition("-")[0]) > 0


def test_connection_that_is_cut_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = Fault("cut", after_bytes=1_500_000)
    done = download(hub.url, tmp_path, "org/open")
    assert weights_of(done) == WEIGHTS
    ranges = [asked for name, asked in hub.fetched if name == "model.safetensors"]
    assert len(ranges) > 1


def test_download_that_was_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = Fault("stall", after_bytes=1_500_000)
    words, env = command(hub.url, tmp_path, "org/open", HF_HUB_DOWNLOAD_TIMEOUT="100")
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(hub, "model.safetensors")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in family), 30, "none lives")
    assert weights_of(download(hub.url, tmp_path, "org/open")) == WEIGHTS


def test_lie_about_the_size_is_an_error_and_leaves_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = Fault("lie", after_bytes=100, times=1000)
    done = download(hub.url, tmp_path, "org/open")
    assert done.returncode == ExitCode.HUB_FAILED
    assert not list(tmp_path.rglob("model.safetensors"))


def test_bytes_that_are_not_those_of_the_checksum_are_removed_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    folder = Path(download(hub.url, tmp_path, "org/open").stdout.splitlines()[-1])
    weights = folder / "model.safetensors"
    weights.resolve().write_bytes(b"x" + WEIGHTS[1:])
    done = download(hub.url, tmp_path, "org/open")
    assert done.returncode == ExitCode.BAD_FILES
    assert "not as the hub has them: model.safetensors; they were removed" in done.stderr
    assert not weights.exists()
    assert weights_of(download(hub.url, tmp_path, "org/open")) == WEIGHTS


def test_token_comes_from_a_file(hub: Hub, tmp_path: Path) -> None:
    token = tmp_path / "secret.txt"
    token.write_text("hf_right\n")
    assert download(hub.url, tmp_path, "org/secret").returncode == ExitCode.NO_ACCESS
    assert weights_of(download(hub.url, tmp_path, "org/secret", "--hf-token-file", str(token))) == WEIGHTS
    assert hub.tokens == {None, "Bearer hf_right"}


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault("status", status=401), ExitCode.NO_ACCESS, "refuses access (401)"),
        (Fault("status", status=403), ExitCode.NO_ACCESS, "refuses access (403)"),
        (Fault("status", status=403, headers=GATED), ExitCode.NO_ACCESS, "access is gated"),
        (Fault("status", status=404), ExitCode.HUB_FAILED, "404"),
        (Fault("status", status=429, headers={"Retry-After": "7"}), ExitCode.HUB_FAILED, "try again in 7 s"),
    ],
    ids=["401", "403", "gated", "404", "429"],
)
def test_refusal_is_told_in_words(fault: Fault, code: ExitCode, words: str, hub: Hub, tmp_path: Path) -> None:
    hub.status_of_api = fault
    done = download(hub.url, tmp_path, "org/open")
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_file_that_is_refused_for_a_moment_is_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = Fault("status", status=429, headers={"Retry-After": "1"})
    assert weights_of(download(hub.url, tmp_path, "org/open")) == WEIGHTS


def test_offline_download_asks_no_name_server(hub: Hub, tmp_path: Path) -> None:
    first = download(hub.url, tmp_path, "org/open")
    environ, trace = trapped(tmp_path, os.environ.get("PYTHONPATH", ""))
    environ["HF_ENDPOINT"] = "http://hub.invalid"
    offline = download(hub.url, tmp_path, "org/open", HF_HUB_OFFLINE="1", **environ)
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert not trace.exists()
    # The trap works: with the hub allowed, its name is looked up.
    assert download(hub.url, tmp_path, "org/other", **environ).returncode == ExitCode.HUB_FAILED
    assert "hub.invalid" in trace.read_text()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], ExitCode.WRONG_SETTING, "the model is missing"),
        (["/tmp"], ExitCode.NO_SUCH_MODEL, "is here already"),
        (["org/open", "--stall-timeout-s", "0"], ExitCode.WRONG_SETTING, "--stall-timeout-s is '0'"),
        (["org/open", "--inclde", "x"], ExitCode.WRONG_SETTING, "did you mean --include?"),
    ],
)
def test_mistakes_are_named(argv: list[str], code: ExitCode, words: str, tmp_path: Path) -> None:
    done = download("http://127.0.0.1:9", tmp_path, *argv)
    assert done.returncode == code
    assert words in done.stderr
