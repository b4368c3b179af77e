"""Bars on a terminal, and lines of the log above them."""

import io
import logging
import shutil
from collections.abc import Iterator

import pytest
from textmill_launcher import logs
from textmill_launcher.child_name import ChildName
from textmill_launcher.readiness import PhaseLog

from tests.fakes.terminal import CLEAR, Terminal, shown_at_last

SHARD = ChildName("shard", 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "120")
    yield
    logs.configure(json_output=False, level="INFO", stream=io.StringIO())  # no bars for other tests


def test_bar_grows_with_the_share_and_goes_when_the_child_is_ready() -> None:
    terminal = Terminal()
    logs.configure(json_output=False, level="INFO", stream=terminal)
    phases = PhaseLog(SHARD)
    phases.enter("weights", 0.25)
    phases.enter("weights", 0.5)
    assert shown_at_last(terminal) == "shard rank 0: weights [##########..........]  50 %"
    phases.end()
    assert shown_at_last(terminal) == ""
    assert "shard rank 0: ready after" in terminal.getvalue()


def test_lines_of_launcher_and_children_stand_above_the_bar() -> None:
    terminal = Terminal()
    output = logs.configure(json_output=False, level="INFO", stream=terminal)
    phases = PhaseLog(SHARD)
    phases.enter("starting", 0.5)
    before = len(terminal.getvalue())
    logging.getLogger("textmill_launcher.x").info("hello")
    output.write(SHARD, "loading")
    phases.enter("starting", 0.75)
    written = terminal.getvalue()[before:]
    assert written.startswith(CLEAR)
    first, second, bar = written.removeprefix(CLEAR).split("\n")
    assert first.endswith("launcher: hello")
    assert second == "shard rank 0: loading"
    assert bar == f"{CLEAR}shard rank 0: starting [###############.....]  75 %"


def test_bars_of_several_children_share_the_line_and_never_fill_it() -> None:
    terminal = Terminal()
    logs.configure(json_output=False, level="INFO", stream=terminal)
    for rank in range(4):
        PhaseLog(ChildName("shard", rank)).enter("starting", 0.1)
    line = shown_at_last(terminal)
    assert "shard rank 1: starting" in line
    assert len(line) == shutil.get_terminal_size().columns - 1 == 119


@pytest.mark.parametrize(("stream", "json_output"), [(io.StringIO(), False), (Terminal(), True)], ids=["file", "json"])
def test_files_and_json_have_no_bars(stream: io.StringIO, json_output: bool) -> None:
    logs.configure(json_output=json_output, level="INFO", stream=stream)
    PhaseLog(SHARD).enter("starting", 0.5)
    assert stream.getvalue() == ""
