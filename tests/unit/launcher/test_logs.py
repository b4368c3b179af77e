"""The lines of the launcher and of its children, as text and as JSON."""

import io
import json
import logging

from textmill_launcher import logs
from textmill_launcher.child_name import ChildName


def test_text_line_has_message_and_fields() -> None:
    stream = io.StringIO()
    logs.configure(json_output=False, level="INFO", stream=stream)
    logging.getLogger("textmill_launcher.x").info("hello", extra={"port": 3000})
    assert stream.getvalue().endswith("INFO    launcher: hello port=3000\n")


def test_json_line_has_level_message_and_fields() -> None:
    stream = io.StringIO()
    logs.configure(json_output=True, level="INFO", stream=stream)
    logging.getLogger("textmill_launcher.x").warning("hello %s", "you", extra={"port": 3000})
    entry = json.loads(stream.getvalue())
    assert entry["level"] == "WARNING"
    assert entry["fields"] == {"message": "hello you", "port": 3000}
    assert entry["target"] == "textmill_launcher"


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure(json_output=False, level="WARNING", stream=stream)
    logging.getLogger("textmill_launcher.x").info("hello")
    assert stream.getvalue() == ""


def test_childs_text_line_carries_role_and_rank() -> None:
    stream = io.StringIO()
    logs.ChildOutput(stream, json_output=False).write(ChildName("shard", 1), "ready")
    assert stream.getvalue() == "shard rank 1: ready\n"


def test_childs_json_line_gains_source_and_rank() -> None:
    stream = io.StringIO()
    logs.ChildOutput(stream, json_output=True).write(ChildName("shard", 1), '{"level": "INFO", "message": "ready"}')
    assert json.loads(stream.getvalue()) == {"level": "INFO", "message": "ready", "source": "shard", "rank": 1}


def test_childs_line_that_is_no_json_is_wrapped() -> None:
    stream = io.StringIO()
    logs.ChildOutput(stream, json_output=True).write(ChildName("router"), "Traceback:")
    entry = json.loads(stream.getvalue())
    assert entry["fields"] == {"message": "Traceback:"}
    assert entry["source"] == "router"
    assert "rank" not in entry


def test_reader_that_has_gone_away_stops_nothing() -> None:
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    logs.ChildOutput(ClosedPipe(), json_output=False).write(ChildName("router"), "line")
