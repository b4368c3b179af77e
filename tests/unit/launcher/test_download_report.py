"""The progress of a download on a terminal, in a file, as JSON, and as the launcher's bar draws it."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textmill_launcher import download_report, logs
from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.download_report import BAR, FORMS, JSON, LINES, MIB, SHARES, form_for, new_report

from tests.fakes.hub import COMMIT, Fault, running_hub
from tests.fakes.terminal import CLEAR, Terminal, shown_at_last


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "120")
    yield
    logs.configure(json_output=False, level="INFO", stream=io.StringIO())


def test_bar_shows_sizes_and_speed_below_the_events() -> None:
    terminal = Terminal()
    report = new_report(BAR, terminal)
    report.show(10 * MIB, 40 * MIB, 5.0)
    assert shown_at_last(terminal) == "download: 10 of 40 MiB, 2.0 MiB/s [#####...............]  25 %"
    report.tell("no byte came")
    assert terminal.getvalue().endswith(f"{CLEAR}download: no byte came\n")
    report.show(20 * MIB, 40 * MIB, 5.0)
    report.end()
    assert shown_at_last(terminal) == ""


def test_lines_come_every_ten_seconds_and_nothing_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(download_report.time, "monotonic", lambda: now_s)
    stream = io.StringIO()
    report = new_report(LINES, stream)
    for later_s in (105.0, 111.0, 112.0):
        now_s = later_s
        report.show(10 * MIB, 40 * MIB, 5.0)
    assert stream.getvalue() == "download: 10 of 40 MiB (25 %), 2.0 MiB/s\n"


def test_json_lines_have_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(download_report.time, "monotonic", lambda: now_s)
    stream = io.StringIO()
    report = new_report(JSON, stream)
    report.tell("words")
    now_s = 111.0
    report.show(10, 40, 5.04)
    words, progress = (json.loads(line) for line in stream.getvalue().splitlines())
    assert words["fields"] == {"message": "words"}
    assert progress["fields"] == {"message": "fetching", "fetched_bytes": 10, "wanted_bytes": 40, "elapsed_s": 5.0}


@pytest.mark.parametrize(
    ("json_output", "is_terminal", "form"),
    [(True, True, JSON), (True, False, JSON), (False, True, SHARES), (False, False, LINES)],
)
def test_form_follows_terminal_and_log(json_output: bool, is_terminal: bool, form: str) -> None:
    assert form_for(json_output=json_output, is_terminal=is_terminal, on_terminal=SHARES) == form
    assert form in FORMS


def test_launcher_draws_the_shares_of_its_child(tmp_path: Path) -> None:
    terminal = Terminal()
    output = logs.configure(json_output=False, level="INFO", stream=terminal)
    stream = io.StringIO()
    report = new_report(SHARES, stream)
    report.tell("40.0 MiB to fetch")
    report.show(10 * MIB, 40 * MIB, 5.0)
    (tmp_path / "lines").write_text(stream.getvalue())

    async def run() -> ChildProcess:
        child = ChildProcess.spawn(ChildName("download"), ["/bin/cat", str(tmp_path / "lines")], {}, output)
        assert await child.wait() == 0
        return child

    child = asyncio.run(run())
    assert "download: download: 40.0 MiB to fetch\n" in terminal.getvalue()
    assert shown_at_last(terminal) == "download: 10 of 40 MiB, 2.0 MiB/s [#####...............]  25 %"
    assert child.last_lines == ("download: 40.0 MiB to fetch",)  # a failure quotes no shares


def test_command_draws_on_a_terminal_and_not_elsewhere(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 12_000
    files = {"config.json": b"{}", "vocab.json": weights, "model.safetensors": weights}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with running_hub({"org/open": files}) as hub:
        hub.faults["model.safetensors"] = Fault("stall", after_bytes=1_500_000)
        argv = ["download", "org/open", "--huggingface-hub-cache", str(tmp_path), "--stall-timeout-s", "3"]
        ours, theirs = os.openpty()
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        with subprocess.Popen(
            [sys.executable, "-m", "textmill_launcher", *argv],
            env={**kept, **environ, "HF_HUB_DOWNLOAD_TIMEOUT": "100", "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        ) as process:
            os.close(theirs)
            shown = b""
            while piece := read(ours):
                shown += piece
            assert process.stdout is not None
            folder = process.stdout.read().strip()
        os.close(ours)
    assert process.returncode == 0, shown
    assert Path(folder).name == COMMIT
    bars = [part for part in shown.decode().split(CLEAR) if "[" in part]
    half = "download: 3 of 6 MiB, "  # while the other file stalls
    assert any(bar.startswith(half) and bar.endswith("[##########..........]  50 %") for bar in bars), bars
    assert "no byte came for 3 s" in shown.decode()


def read(descriptor: int) -> bytes:
    """Return what a terminal shows next, or nothing at its end."""
    try:
        return os.read(descriptor, 4096)
    except OSError:  # nobody writes to the terminal any more
        return b""
