"""The three rooms format log lines by copies of one file, and each room's lines have the published form."""

import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from textmill_launcher import logs as launcher_logs
from textmill_router import logs as router_logs
from textmill_shard import logs as shard_logs

REPOSITORY = Path(__file__).parents[2]
MOMENT = 1_700_000_000.25  # 2023-11-14 22:13:20 UTC and a quarter


def log_of_router(json_output: bool, stream: io.StringIO) -> None:
    router_logs.configure_logging(json_output=json_output, level="INFO", stream=stream)


def log_of_shard(json_output: bool, stream: io.StringIO) -> None:
    shard_logs.configure_logging(rank=1, json_output=json_output, level="INFO", stream=stream)


def log_of_launcher(json_output: bool, stream: io.StringIO) -> None:
    launcher_logs.configure(json_output=json_output, level="INFO", stream=stream)


Configure = Callable[[bool, io.StringIO], None]
ROOMS: dict[str, Configure] = {"router": log_of_router, "shard": log_of_shard, "launcher": log_of_launcher}
TEXT_LINES = {
    "router": "2023-11-14T22:13:20.250000Z WARNING textmill_router.part: slow by 3 request_id=r1 ratio=0.5\n",
    "shard": "2023-11-14T22:13:20.250000Z WARNING textmill_shard.part rank=1: slow by 3 request_id=r1 ratio=0.5\n",
    "launcher": "2023-11-14T22:13:20.250000Z WARNING launcher: slow by 3 request_id=r1 ratio=0.5\n",
}
HEAD = {"timestamp": "2023-11-14T22:13:20.250000Z", "level": "WARNING"}
EXTRAS = {"request_id": "r1", "ratio": 0.5}
JSON_LINES = {
    "router": HEAD
    | {"message": "slow by 3", "target": "textmill_router.part", "filename": "part.py", "line_number": 17}
    | EXTRAS,
    "shard": HEAD | {"message": "slow by 3", "target": "textmill_shard.part", "rank": 1} | EXTRAS,
    "launcher": HEAD | {"fields": {"message": "slow by 3"} | EXTRAS, "target": "textmill_launcher"},
}


def line_of(room: str, *, json_output: bool, with_exception: bool = False) -> str:
    """Return the line of a record that has a message with an argument, two extras, and a known time and place."""
    stream = io.StringIO()
    logger = logging.getLogger(f"textmill_{room}")
    before = (logger.handlers, logger.level, logger.propagate)
    ROOMS[room](json_output, stream)
    exception = None
    if with_exception:
        try:
            raise ValueError("broken")
        except ValueError:
            exception = sys.exc_info()
    place = (logger.name + ".part", logging.WARNING, "/src/part.py", 17)
    record = logger.makeRecord(*place, "slow by %d", (3,), exception, extra=EXTRAS)
    record.created = MOMENT
    logger.handle(record)
    logger.handlers, logger.level, logger.propagate = before
    return stream.getvalue()


def test_rooms_format_lines_by_the_same_code() -> None:
    copies = {(REPOSITORY / room / f"textmill_{room}" / "log_lines.py").read_text() for room in ROOMS}
    assert len(copies) == 1


@pytest.mark.parametrize("room", ROOMS)
def test_text_line_names_time_level_origin_message_and_extras(room: str) -> None:
    assert line_of(room, json_output=False) == TEXT_LINES[room]


@pytest.mark.parametrize("room", ROOMS)
def test_json_line_is_one_object_with_the_same_facts(room: str) -> None:
    line = line_of(room, json_output=True)
    assert json.loads(line) == JSON_LINES[room]
    assert line.count("\n") == 1


@pytest.mark.parametrize("room", ROOMS)
def test_an_exception_is_below_the_text_and_inside_the_object(room: str) -> None:
    text = line_of(room, json_output=False, with_exception=True)
    assert text.startswith(TEXT_LINES[room])
    assert text.endswith("ValueError: broken\n")
    line = line_of(room, json_output=True, with_exception=True)
    assert line.count("\n") == 1
    assert json.loads(line)["exception"].endswith("ValueError: broken")
