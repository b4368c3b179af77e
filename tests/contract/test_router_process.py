"""The router as a process, which binds at once, drains on SIGTERM, and ends with a status and a reason."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router.exit_codes import BAD_FILES, CHILD_DIED, PORT_TAKEN, WRONG_SETTING

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_shard import FakeShard, FakeShardOptions, write_adapter
from tests.fakes.span_collector import SpanCollector

LIMIT_S = 30.0


class RouterProcess:
    """A process `textmill-router` with JSON logs. `lines` are the lines read so far."""

    def __init__(self, folder: Path, *flags: str) -> None:
        write_byte_tokenizer(folder / "model")
        self.lines: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "textmill_router", "--json-output", "--hostname", "127.0.0.1", "--port", "0"),
                *("--model-dir", str(folder / "model"), "--model-id", "fake/model"),
                *("--shard-uds-path", str(folder / "shard.sock"), "--api-key", "Sesame-1", *flags),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._timer = threading.Timer(LIMIT_S, self._process.kill)
        self._timer.start()

    def wait_for(self, message: str) -> dict[str, Any]:
        """Read the log up to a line with this message."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1]["message"] == message:
                return self.lines[-1]
        raise AssertionError(f"the log ended without {message!r}: {self.lines}")

    def tell(self, note: str) -> None:
        """Write a line to the router's standard input, as a launcher does."""
        assert self._process.stdin is not None
        self._process.stdin.write(note + "\n")
        self._process.stdin.flush()

    def hang_up(self) -> None:
        """Close the router's standard input, as the end of a launcher does."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def exit_status(self) -> int:
        """Read the rest of the log, and wait for the end."""
        assert self._process.stdout is not None
        self.lines += [json.loads(line) for line in self._process.stdout]
        status = self._process.wait()
        self._timer.cancel()
        return status

    def close(self) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def router_process(folder: Path, *flags: str) -> Iterator[RouterProcess]:
    process = RouterProcess(folder, *flags)
    try:
        yield process
    finally:
        process.close()


def client_of(port: int) -> httpx.Client:
    headers = {"authorization": "Bearer Sesame-1"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=LIMIT_S, trust_env=False)


def test_life_of_a_process(tmp_path: Path) -> None:
    with router_process(tmp_path) as process:
        port = process.wait_for("listening")["port"]
        with client_of(port) as client:
            # No process listens on the shard's socket yet.
            answer = client.post("/generate", json={"inputs": "hi"})
            assert (answer.status_code, answer.json()["error_type"]) == (503, "loading")
            with FakeShard(tmp_path / "shard.sock", FakeShardOptions(step_s=0.005)):
                process.wait_for("ready")
                body = {"inputs": "hi", "parameters": {"max_new_tokens": 100}}
                with client.stream("POST", "/generate_stream", json=body) as stream:
                    lines = stream.iter_lines()
                    next(lines)
                    process.terminate()
                    process.wait_for("draining")
                    with client_of(port) as other:
                        answer = other.post("/generate", json=body)
                        assert (answer.status_code, answer.json()["error_type"]) == (503, "shutting_down")
                    last = [line for line in lines if line][-1]
                assert json.loads(last.removeprefix("data: "))["index"] == 100
                assert process.exit_status() == 0
        assert "Sesame" not in json.dumps(process.lines)
        assert {"timestamp", "level", "message", "target"} <= set(process.lines[0])
        assert process.lines[-1]["message"] == "stopped"


def test_spans_that_wait_are_sent_before_the_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with SpanCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with router_process(tmp_path) as process:
            with client_of(process.wait_for("listening")["port"]) as client:
                assert client.post("/generate", json={"inputs": "hi"}).status_code == 503
            process.terminate()
            assert process.exit_status() == 0
        [span] = collector.spans
    assert (span.name, span.attributes["error.type"]) == ("POST /generate", "loading")


def test_drain_has_an_end_and_tells_those_who_still_wait(tmp_path: Path) -> None:
    flags = ("--drain-timeout", "0.2")
    with (
        FakeShard(tmp_path / "shard.sock", FakeShardOptions(step_s=0.005)),
        router_process(tmp_path, *flags) as process,
    ):
        port = process.wait_for("listening")["port"]
        process.wait_for("ready")
        with client_of(port) as client, client.stream("POST", "/generate_stream", json={"inputs": "hi"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.terminate()
            last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
            assert last["error_type"] == "shutting_down"
        assert process.exit_status() == 0


def test_running_calls_are_told_why_the_shards_were_given_up(tmp_path: Path) -> None:
    cause = "shard rank 1 was killed by SIGKILL while serving"
    with (
        FakeShard(tmp_path / "shard.sock", FakeShardOptions(step_s=0.005)),
        router_process(tmp_path, "--launcher-notes") as process,
    ):
        port = process.wait_for("listening")["port"]
        process.wait_for("ready")
        with client_of(port) as client, client.stream("POST", "/generate_stream", json={"inputs": "hi"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.tell(json.dumps({"note": "shards_given_up", "replica": 0, "cause": cause}))
            last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
            assert (last["error_type"], last["error"]) == ("shutting_down", cause)
        assert process.exit_status() == CHILD_DIED
        assert process.lines[-1]["message"] == f"the router stops: {cause}"


def test_router_ends_when_its_launcher_has_ended(tmp_path: Path) -> None:
    with FakeShard(tmp_path / "shard.sock"), router_process(tmp_path, "--launcher-notes") as process:
        process.wait_for("ready")
        process.hang_up()
        assert process.exit_status() == CHILD_DIED
        assert process.lines[-1]["message"] == "the router stops: the launcher has ended"


def test_streams_get_comments_while_no_shard_serves_and_then_go_on(tmp_path: Path) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 400}}
    with (
        FakeShard(tmp_path / "shard.sock", FakeShardOptions(step_s=0.005)) as shard,
        router_process(tmp_path) as process,
    ):
        port = process.wait_for("listening")["port"]
        process.wait_for("ready")
        with client_of(port) as client, client.stream("POST", "/generate_stream", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            shard.load("weights", 0.5)
            shard.cut()
            assert next(line for line in lines if line and not line.startswith("data:")) == ":"
            shard.load(None)
            last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
        assert last["index"] == 400


def test_shutdown_delay_serves_calls_while_balancers_notice(tmp_path: Path) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
    with (
        FakeShard(tmp_path / "shard.sock", FakeShardOptions(step_s=0.005)),
        router_process(tmp_path, "--shutdown-delay", "1.5") as process,
    ):
        port = process.wait_for("listening")["port"]
        process.wait_for("ready")
        with client_of(port) as client:
            assert "connection" not in client.post("/generate", json=body).headers
            process.terminate()
            assert process.wait_for("not ready any more")["delay_s"] == 1.5
            probes = [client.get(path) for path in ("/health/ready", "/health", "/health/live")]
            assert [probe.status_code for probe in probes] == [503, 503, 200]
            assert probes[0].json()["state"] == "draining"
            # A stream that begins in the delay keeps the server until the client has seen what comes after the delay.
            long = {**body, "parameters": {"max_new_tokens": 2000}}
            with client.stream("POST", "/generate_stream", json=long) as stream:
                assert (stream.status_code, stream.headers["connection"]) == (200, "close")
                process.wait_for("draining")
                refused = client.post("/generate", json=body)
                assert (refused.status_code, refused.json()["error_type"]) == (503, "shutting_down")
                assert refused.headers["connection"] == "close"
                assert int(refused.headers["retry-after"]) >= 1
                process.terminate()
        assert process.exit_status() == 0


def test_second_signal_ends_the_shutdown_delay(tmp_path: Path) -> None:
    with (
        FakeShard(tmp_path / "shard.sock", FakeShardOptions()),
        router_process(tmp_path, "--shutdown-delay", "1000") as process,
    ):
        process.wait_for("ready")
        process.terminate()
        process.wait_for("not ready any more")
        process.terminate()
        assert process.exit_status() == 0


def test_shard_that_does_not_fit_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    with FakeShard(tmp_path / "shard.sock", FakeShardOptions(protocol_version=99)), router_process(tmp_path) as process:
        assert process.exit_status() == CHILD_DIED
        assert "protocol 99" in process.lines[-1]["message"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-total-tokens", "999999"), ("--max-total-tokens", "999999", "32768")),
        (("--max-input-tokens", "32768"), ("--max-input-tokens", "32768")),
    ],
)
def test_limits_that_the_shard_cannot_keep_end_the_process(
    tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    options = FakeShardOptions(max_model_tokens=32768)
    with FakeShard(tmp_path / "shard.sock", options), router_process(tmp_path, *flags) as process:
        assert process.exit_status() == 2
        assert all(word in process.lines[-1]["message"] for word in words)


def test_taken_port_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with router_process(tmp_path / "first") as first:
        port = first.wait_for("listening")["port"]
        with router_process(tmp_path / "second", "--port", str(port)) as second:
            assert second.exit_status() == PORT_TAKEN
            assert f"127.0.0.1:{port}" in second.lines[-1]["message"]


def test_checkpoint_with_a_number_out_of_range_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"num_beams": 10000}')
    with router_process(tmp_path, "--model-dir", str(tmp_path), "--task", "summarization") as process:
        assert process.exit_status() == BAD_FILES
        assert "`num_beams` of" in process.lines[-1]["message"]
        assert "from 1 to 64, found 10000; correct the file" in process.lines[-1]["message"]


def test_folder_without_a_tokenizer_ends_the_process(tmp_path: Path) -> None:
    with router_process(tmp_path, "--model-dir", str(tmp_path)) as process:
        assert process.exit_status() == BAD_FILES
        assert "tokenizer.json" in process.lines[-1]["message"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--api-key-file", "keys.toml"), ("--api-key-file", "[[key]] 1", "none of name, key")),
        (("--api-key-file", "missing.toml"), ("--api-key-file", "cannot be read: No such file")),
        (
            ("--tls-cert", "keys.toml", "--tls-key", "keys.toml"),
            ("--tls-cert, --tls-key", "no certificate and its key"),
        ),
    ],
)
def test_files_of_keys_and_of_tls_that_cannot_be_used_end_the_start_without_a_key_in_the_log(
    tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (tmp_path / "keys.toml").write_text('[[key]]\nname = "a"\nkey = "sk-secret"\n"sk-other" = 1\n')
    paths = [flag if flag.startswith("--") else str(tmp_path / flag) for flag in flags]
    with router_process(tmp_path, *paths) as process:
        assert process.exit_status() == 2
        last = process.lines[-1]["message"]
        for word in words:
            assert word in last
        assert "sk-" not in json.dumps(process.lines)
        assert "listening" not in [line["message"] for line in process.lines]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--lora-adapter", "good=GOOD", "--lora-adapter", "bad=BAD"),
            "the adapter 'bad' cannot be loaded: .* no module",
        ),
        (("--lora-adapter", "good=GOOD", "--lora-adapter", "good=GOOD"), "two adapters have the name 'good'"),
        (("--lora-adapter", "fake/model=GOOD"), "name of the base model"),
    ],
)
def test_an_adapter_that_is_refused_at_the_start_ends_the_process(
    tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    folders = {"GOOD": "verses", "BAD": "bad"}
    for name, content in folders.items():
        write_adapter(tmp_path / name, content)
        flags = tuple(flag.replace(f"={name}", f"={tmp_path / name}") for flag in flags)
    with FakeShard(tmp_path / "shard.sock", FakeShardOptions()), router_process(tmp_path, *flags) as process:
        assert process.exit_status() == WRONG_SETTING
    assert re.search(words, process.lines[-1]["message"])
