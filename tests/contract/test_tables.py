"""Tables in front of a shard whose choices are known: what is read, what is answered, and what is refused."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router.tasks.table_question_answering import MAX_CELLS, MAX_CHARACTERS, MAX_TEXT_CHARACTERS

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

TASK = "table-question-answering"
OPTIONS = RowShardOptions(heads=("cells",), labels=("NONE", "SUM"), media="table", max_batch_files=1)
TABLE = {"Name": ["Ann", "Bob"], "Pet": ["a cat", "a dog"]}
PLAIN = {"answer": "Ann, a dog", "coordinates": [[0, 0], [1, 1]], "cells": ["Ann", "a dog"], "aggregator": "NONE"}
SUM = {**PLAIN, "answer": "SUM > Ann, a dog", "aggregator": "SUM"}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with task_router(tmp_path_factory.mktemp("tables"), TASK, OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


def test_the_answer_has_the_cells_and_what_to_do_with_them(client: httpx.Client) -> None:
    one = {"table": TABLE, "query": "who?"}
    assert client.post("/", json={"inputs": one}).json() == PLAIN
    assert client.post("/", json={"inputs": {"table": TABLE, "question": "who?"}}).json() == PLAIN
    assert client.post("/", json={"inputs": {**one, "query": ["who?"]}}).json() == [PLAIN]
    assert client.post("/", json={"inputs": [one]}).json() == [PLAIN]
    assert client.post("/", json={"inputs": [one, {**one, "query": ["a", "b"]}]}).json() == [PLAIN, [PLAIN, PLAIN]]


def test_other_names_of_the_route_answer_alike(client: httpx.Client) -> None:
    body = {"inputs": {"table": TABLE, "query": "who?"}}
    for path in (f"/pipeline/{TASK}", f"/models/org/tapas/pipeline/{TASK}", "/models/org/tapas", "/invocations"):
        assert client.post(path, json=body).json() == PLAIN, path
    assert client.post("/vertex", json={"instances": [body, body]}).json() == {"predictions": [PLAIN, PLAIN]}
    inputs = {"instances": [{"query": "who?", "table": TABLE}, {"question": "who?", "table": TABLE}]}
    assert client.post("/vertex", json=inputs).json() == {"predictions": [PLAIN, PLAIN]}


def test_questions_that_follow_one_another_are_one_row(client: httpx.Client, router: RunningRouter) -> None:
    body: dict[str, Any] = {"inputs": {"table": TABLE, "query": ["a", "b"]}}
    assert client.post("/", json=body).json() == [PLAIN, PLAIN]
    body["parameters"] = {"sequential": True, "padding": True, "truncation": "do_not_truncate"}
    assert client.post("/", json=body).json() == [PLAIN, SUM]


def test_rows_that_the_model_has_not_read_are_told(client: httpx.Client) -> None:
    long = {"inputs": {"table": {"a": ["1", "2", "3", "4"]}, "query": ["x", "y"]}}
    answer = client.post("/", json=long)
    assert answer.json()[0]["coordinates"] == [[0, 0], [2, 0]]
    assert answer.headers["x-truncated-inputs"] == "2"
    assert answer.headers["x-compute-characters"] == "7"
    assert answer.headers["x-prompt-tokens"] == "12"  # six of each question, as the shard says


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no query", {"table": TABLE}, "`inputs.query` is missing"),
    ("no questions", {"table": TABLE, "query": []}, "`inputs.query` must hold at least one question"),
    ("empty query", {"table": TABLE, "query": " "}, "`inputs.query` must not be empty"),
    ("empty question", {"table": TABLE, "question": ["a", ""]}, "`inputs.question[1]` must not be empty"),
    ("no column", {"table": {}, "query": "a"}, "`inputs.table` has no column"),
    ("no row", {"table": {"a": [], "b": []}, "query": "a"}, "`inputs.table` has no row"),
    (
        "lengths",
        {"table": {"a": ["1", "2"], "b": ["1"]}, "query": "a"},
        "columns of different lengths: 'a' has 2 cells, and 'b' has 1",
    ),
    ("object", {"table": {"a": [{"b": 1}]}, "query": "a"}, "`inputs.table['a'][0]` must be a text, a number"),
    ("list", {"table": {"a": ["x", [1]]}, "query": "a"}, "`inputs.table['a'][1]` must be a text, a number"),
    ("no list", {"table": {"a": "x"}, "query": "a"}, "inputs.table"),
    ("no table", {"query": "a"}, "table"),
    ("rows", {"table": [["a"], ["b"]], "query": "a"}, "inputs.table"),
    ("cells", {"table": {"a": ["1"] * (MAX_CELLS + 1)}, "query": "a"}, f"a table has at most {MAX_CELLS}"),
    ("many cells", {"table": {"a": ["1"] * 100_000}, "query": "a"}, "has 100000 cells"),
    (
        "long cell",
        {"table": {"a": ["1", "x" * (MAX_TEXT_CHARACTERS + 1)]}, "query": "a"},
        "`inputs.table['a'][1]` has 4001 characters",
    ),
    ("long name", {"table": {"x" * 4001: ["1"]}, "query": "a"}, "(the name of a column)` has 4001 characters"),
    ("long question", {"table": TABLE, "query": "x" * 4001}, "`inputs.query` has 4001 characters"),
    (
        "characters",
        {"table": {"a": ["x" * 4000] * 26}, "query": "a"},
        f"has 104001 characters, and a table has at most {MAX_CHARACTERS}",
    ),
    ("questions", {"table": TABLE, "query": ["a"] * 33}, "makes 33 rows, and a call has at most 32"),
]


@pytest.mark.parametrize(("inputs", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_no_table_is_refused_within_a_second(client: httpx.Client, inputs: dict[str, Any], words: str) -> None:
    began_s = time.process_time()
    answer = client.post("/", json={"inputs": inputs})
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert time.process_time() - began_s < 1
    assert client.post("/", json={"inputs": {"table": TABLE, "query": "who?"}}).json() == PLAIN


def test_a_sequence_of_too_many_questions_is_refused(tmp_path: Path) -> None:
    with task_router(tmp_path, TASK, OPTIONS, max_task_rows=100) as router, router.client() as client:
        body = {"inputs": {"table": TABLE, "query": ["a"] * 33}}
        assert len(client.post("/", json=body).json()) == 33
        answer = client.post("/", json={**body, "parameters": {"sequential": True}})
        assert answer.status_code == 422
        assert "with `parameters.sequential` the most is 32" in answer.json()["error"]


def test_deep_cells_are_refused_within_a_second(client: httpx.Client) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    began_s = time.process_time()
    answer = client.post("/", content=b'{"inputs": {"query": "a", "table": {"a": [%s]}}}' % deep)
    assert answer.status_code in (400, 422)
    assert time.process_time() - began_s < 1


def test_numbers_of_json_are_texts_as_they_are_written(client: httpx.Client, router: RunningRouter) -> None:
    cells = b'[1.50, -3e2, true, null, "\\u0041", 123456789012345678901234567890]'
    answer = client.post("/", content=b'{"inputs": {"query": "a", "table": {"a": %s}}}' % cells)
    assert answer.status_code == 200
    assert answer.headers["x-compute-characters"] == str(2 + len("1.50-3e2trueA123456789012345678901234567890"))
    assert answer.json()["cells"] == ["1.50", "true"]


def test_a_body_that_is_no_json_is_415(client: httpx.Client) -> None:
    answer = client.post("/", content=b"\x89PNG", headers={"content-type": "image/png"})
    assert answer.status_code == 415
