"""The load generator against a server that notes when each request came and when each event left."""

import asyncio
import csv
import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from textmill_bench import __main__ as command
from textmill_bench.client import Record
from textmill_bench.errors import BenchError
from textmill_bench.figures import Load
from textmill_bench.options import RunOptions, read_options
from textmill_bench.progress import Progress
from textmill_bench.results import Level, to_csv
from textmill_bench.run import measure

from tests.fakes.timed_server import FURTHER_TOKENS, TOKENS_PER_WORD, Served, TimedServer

LATE_S = 2.0  # by which a loaded machine may notice an event later


def run(server: TimedServer, *flags: str) -> list[tuple[Level, list[Record]]]:
    options = read_options(["--url", server.url, "--warmup", "0", *flags], {})
    assert isinstance(options, RunOptions)
    found: list[tuple[Level, list[Record]]] = []
    asyncio.run(measure(options, Progress(io.StringIO()), lambda level, records: found.append((level, records))))
    return found


def measured(server: TimedServer) -> list[Served]:
    """Return the requests behind the two that show how the server counts."""
    return server.served[2:]


@pytest.mark.parametrize(
    ("api", "path"), [("chat", "/v1/chat/completions"), ("completions", "/v1/completions"), ("tgi", "/generate_stream")]
)
def test_times_and_counts_are_those_of_the_server(api: str, path: str) -> None:
    with TimedServer(first_s=0.03, gap_s=0.01) as server:
        [(level, records)] = run(server, "--api", api, "--requests", "4", "--output-tokens", "6", "--concurrency", "2")
        calls = measured(server)
    assert [call.path for call in calls] == [path] * 4
    assert server.most_at_once == 2
    figures = level.figures
    assert (figures["num_requests"], figures["num_failed"], figures["errors"]) == (4, 0, [])
    assert figures["num_output_tokens"] == 24
    assert figures["num_prompt_tokens"] == sum(call.num_prompt_tokens for call in calls)
    assert figures["num_cached_tokens"] == (None if api == "tgi" else 12)
    by_begin = sorted(records, key=lambda record: record.event_times_s[0])
    for record, call in zip(by_begin, sorted(calls, key=lambda call: call.event_times_s[0]), strict=True):
        assert len(record.event_times_s) == len(call.event_times_s) == 6
        for seen_s, left_s in zip(record.event_times_s, call.event_times_s, strict=True):
            assert left_s <= seen_s <= left_s + LATE_S
        assert record.sent_s <= call.came_s
        assert record.ttft_s >= server.first_s
    span_s = max(record.done_s for record in records) - min(call.came_s for call in calls)
    assert figures["output_tokens_per_s"] <= 24 / (span_s - 0.001) + 0.01
    assert figures["output_tokens_per_s"] >= 24 / (span_s + LATE_S)
    assert figures["itl_ms"]["mean"] >= 1000 * server.gap_s / 2
    assert figures["ttft_ms"]["p50"] >= 1000 * server.first_s


def test_prompts_have_the_size_that_the_server_counts() -> None:
    with TimedServer() as server:
        run(server, "--requests", "6", "--input-tokens", "205", "--output-tokens", "1")
        assert {call.num_prompt_tokens for call in measured(server)} == {205}
        assert len({call.prompt for call in measured(server)}) == 6
    with TimedServer() as server:
        flags = ["--input-tokens", "40", "--shared-prefix-tokens", "105", "--num-prefixes", "2", "--output-tokens", "1"]
        run(server, "--requests", "6", *flags)
        prompts = [call.prompt.split() for call in measured(server)]
    assert {len(words) for words in prompts} == {(105 - FURTHER_TOKENS) // TOKENS_PER_WORD + 40 // TOKENS_PER_WORD}
    beginnings = [" ".join(words[:50]) for words in prompts]
    assert beginnings[::2] == [beginnings[0]] * 3
    assert beginnings[1::2] == [beginnings[1]] * 3
    assert beginnings[0] != beginnings[1]


def test_levels_run_one_after_the_other_with_new_prompts() -> None:
    with TimedServer(first_s=0.02) as server:
        levels = run(server, "--concurrency", "1,3", "--requests", "6", "--output-tokens", "1")
        assert server.most_at_once == 3
        assert len({call.prompt for call in measured(server)}) == 12
    assert [level.load for level, _ in levels] == [Load(concurrency=1), Load(concurrency=3)]
    alone = sorted(levels[0][1], key=lambda record: record.sent_s)
    assert all(later.sent_s >= earlier.done_s for earlier, later in pairwise(alone))


def test_open_loop_sends_when_requests_are_due_whatever_the_server_does() -> None:
    with TimedServer(first_s=0.3) as server:
        [(level, records)] = run(server, "--rate", "200", "--requests", "20", "--output-tokens", "1", "--seed", "3")
        assert server.most_at_once > 5  # 20 requests are due in 0.1 s, and each takes 0.3 s
    assert level.load == Load(rate_per_s=200.0)
    assert all(record.sent_s >= record.due_s for record in records)
    assert level.figures["ttft_ms"]["p50"] >= 300


def test_failures_are_counted_by_their_kind_and_spoil_no_figure() -> None:
    faults = {2: "busy", 3: "cut", 4: "error", 5: "empty", 6: "busy"}
    with TimedServer(faults=faults) as server:
        [(level, records)] = run(server, "--requests", "8", "--output-tokens", "4")
    figures = level.figures
    assert (figures["num_requests"], figures["num_failed"], figures["num_output_tokens"]) == (8, 5, 12)
    kinds = {kind["error"].split(":")[0]: (kind["status"], kind["count"]) for kind in figures["errors"]}
    assert kinds.pop('{"error"') == (429, 2)
    assert kinds.pop("out of luck") == (200, 1)
    assert kinds.pop("the answer has no output") == (200, 1)
    assert list(kinds.values()) == [(200, 1)]  # the words of a cut connection are the library's
    rows = list(csv.DictReader(io.StringIO(to_csv([(level.load, records)]))))
    assert [row["status"] for row in rows] == ["429", "200", "200", "200", "429", "200", "200", "200"]
    assert [row["output_tokens"] for row in rows][5:] == ["4"] * 3


def test_key_headers_and_model_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with TimedServer() as server:
        options = read_options(["--url", server.url + "/v1/", "--header", "x-team: a"], {"API_KEY": "s3cret"})
        assert isinstance(options, RunOptions)
        asyncio.run(measure(options, Progress(io.StringIO()), lambda level, records: None))
        for call in server.served:
            assert (call.headers["authorization"], call.headers["x-team"]) == ("Bearer s3cret", "a")
            assert call.body["model"] == "timed/model"
    assert "s3cret" not in str(options.describe())


def test_server_that_is_not_there_ends_the_run() -> None:
    for flags in (["--api", "tgi"], ["--model", "m"], []):
        options = read_options(["--url", "http://127.0.0.1:1", *flags], {})
        assert isinstance(options, RunOptions)
        with pytest.raises(BenchError, match="does not answer"):
            asyncio.run(measure(options, Progress(io.StringIO()), lambda level, records: None))


def main_of(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["textmill-bench", *argv])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


def test_command_writes_its_files_and_compares_two_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gap_s in (("quick", 0.0), ("slow", 0.05)):
        with TimedServer(gap_s=gap_s) as server:
            flags = ["--url", server.url, "--requests", "4", "--output-tokens", "3", "--concurrency", "1,2"]
            assert main_of(monkeypatch, *flags, "--output", str(tmp_path / name)) == 0
        shown = capsys.readouterr()
        assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [["1", "at", "once"], ["2", "at", "once"]]
        assert "2 at once: 4 of 4 requests" in shown.err
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert [level["concurrency"] for level in content["levels"]] == [1, 2]
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) == 9
        page = (tmp_path / f"{name}.html").read_text()
        assert page.count("<svg") == 4
    files = [str(tmp_path / name) for name in ("quick.json", "slow.json", "both.html")]
    assert main_of(monkeypatch, "compare", *files[:2], "--html", files[2]) == 0
    lines = capsys.readouterr().out.splitlines()
    [slower] = [line for line in lines if line.startswith("1 at once") and "ITL p50" in line]
    assert slower.endswith("worse")
    both = Path(files[2]).read_text()
    assert both.count("<svg") == 4
    assert "stroke-dasharray" in both
    assert "http" not in both.replace("http://127.0.0.1", "")  # the page loads nothing


def test_failed_requests_end_with_1_and_a_run_that_cannot_begin_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TimedServer(faults={4: "busy"}) as server:
        assert main_of(monkeypatch, "--url", server.url, "--requests", "3", "--output-tokens", "1") == 1
    with TimedServer(faults={0: "busy"}) as server:
        assert main_of(monkeypatch, "--url", server.url) == 2
    assert "/v1/chat/completions answers 429" in capsys.readouterr().err
    assert main_of(monkeypatch, "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--concurrency", "0"], "wanted a whole number >= 1"),
        (["--concurrency", "1", "--rate", "2"], "not allowed with"),
        (["--rate", "0"], "wanted a number above 0"),
        (["--url", "localhost:3000"], "is no URL"),
        (["--header", "x-team"], "is no header"),
        (["--prompts", "p", "--shared-prefix-tokens", "5"], "exclude each other"),
        (["--request", "5"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_are_told(
    flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of(monkeypatch, *flags) == 2
    assert words in capsys.readouterr().err


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"one"\n\n{"prompt": "two", "more": 1}\n')
    with TimedServer() as server:
        run(server, "--requests", "3", "--output-tokens", "1", "--prompts", str(file))
        assert [call.prompt for call in server.served[1:]] == ["one", "two", "one"]
        file.write_text('"one"\n[]\n')
        with pytest.raises(BenchError, match=r'line 2: wanted "text" or \{"prompt": "text"\}'):
            run(server, "--prompts", str(file))
