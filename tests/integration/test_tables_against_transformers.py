"""table-question-answering over HTTP with tiny random models of TAPAS, against transformers' own pipeline."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from transformers import pipeline

from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_tapas import make_tapas

TASK = "table-question-answering"
TABLES: dict[str, dict[str, list[str]]] = {
    "one cell": {"a": ["1"]},
    "names": {
        "Name": ["Ann", "Bob", "Chloé"],
        "Born": ["1 May 2010", "3rd of June 2011", ""],
        "Cats": ["1", "12", "3.5"],
    },
    "scripts": {"Город": ["Москва", "東京", "שלום"], "": ["e\N{COMBINING ACUTE ACCENT}", "n/a", "\N{GRINNING FACE}"]},
    "long": {"Number": [str(number * 7 % 31) for number in range(60)], "Fox": ["the quick fox"] * 60},
    "wide": {f"c{number}": [str(number), "x"] for number in range(12)},
    "long cell": {"a": ["the fox " * 60, "1"], "b": ["2", "3"]},
}
QUESTIONS = ("how many foxes are 12?", "which is more than 3, and before 2011", "東京?", "e" * 30)


@pytest.fixture(scope="module", params=[True, False], ids=["with aggregation", "without aggregation"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A client of the server, and the pipeline."""
    folder = tmp_path_factory.mktemp("tables")
    # Of these seeds the models choose some cells and not all, and do different things with them.
    model = make_tapas(folder / "model", aggregates=request.param, seed=7 if request.param else 9)
    oracle = pipeline(TASK, model=str(model), device="cpu", dtype=torch.float32)
    with (
        RunningRouter(
            folder, model=model, make_shard=lambda socket, path: RealRowShard(socket, path, TASK), task=TASK
        ) as router,
        router.client() as client,
    ):
        yield client, oracle


def post(client: httpx.Client, body: Any, status: int = 200) -> Any:
    answer = client.post("/", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def as_ours(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline's answer with coordinates as JSON has them, and with an aggregator in any case."""
    return {"aggregator": "NONE", **answer, "coordinates": [list(place) for place in answer["coordinates"]]}


@pytest.mark.parametrize("name", TABLES)
def test_answers_are_those_of_the_pipeline(served: tuple[Any, Any], name: str) -> None:
    client, oracle = served
    table = TABLES[name]
    for question in QUESTIONS:
        expected = as_ours(oracle(table=table, query=question))
        assert post(client, {"inputs": {"table": table, "query": question}}) == expected
    questions = list(QUESTIONS)
    expected = [as_ours(oracle(table=table, query=question)) for question in questions]
    assert post(client, {"inputs": {"table": table, "query": questions}}) == expected
    one = {"inputs": {"table": table, "question": questions[:1]}}
    assert post(client, one) == expected[:1]
    both = {"inputs": [{"table": table, "query": questions[0]}, {"table": TABLES["one cell"], "query": questions[1]}]}
    assert post(client, both) == [expected[0], as_ours(oracle(table=TABLES["one cell"], query=questions[1]))]


def test_models_differ_in_what_they_say(served: tuple[Any, Any]) -> None:
    client, oracle = served
    bodies = [{"table": TABLES[name], "query": one} for name in ("names", "long") for one in QUESTIONS]
    answers = post(client, {"inputs": bodies})
    assert len({json.dumps(answer) for answer in answers}) > 1, "the questions make no difference"
    assert any(answer["cells"] for answer in answers)
    assert {answer["aggregator"] for answer in answers} == ({"NONE", "COUNT", "SUM"} if oracle.aggregate else {"NONE"})


@pytest.mark.parametrize("name", ["names", "long", "wide"])
def test_questions_of_a_sequence_read_the_answer_before(served: tuple[Any, Any], name: str) -> None:
    client, oracle = served
    # The pipeline asks for a cell of each row that the longest question before has read, so the shorter comes first.
    questions = ["which is 12?", "and which of them is more than 3?", "and which of them is before 2011, the fox?"]
    expected = [as_ours(one) for one in oracle(table=TABLES[name], query=questions, sequential=True)]
    body = {"inputs": {"table": TABLES[name], "query": questions}, "parameters": {"sequential": True}}
    assert post(client, body) == expected


def test_cells_of_json_are_texts(served: tuple[Any, Any]) -> None:
    client, oracle = served
    as_texts = {"a": ["12", "1.50", ""], "b": ["true", "x", "-3e2"]}
    raw = '{"inputs": {"query": "which is 12?", "table": {"a": [12, 1.50, null], "b": [true, "x", -3e2]}}}'
    answer = client.post("/", content=raw, headers={"content-type": "application/json"})
    assert answer.json() == as_ours(oracle(table=as_texts, query="which is 12?"))
    assert answer.headers["x-compute-characters"] == str(len("which is 12?ab121.50truex-3e2"))
    assert answer.headers["x-task"] == TASK


def test_rows_that_do_not_fit_are_told(served: tuple[Any, Any]) -> None:
    client, _ = served
    body = {"inputs": {"table": TABLES["long"], "query": list(QUESTIONS[:2])}}
    assert client.post("/", json=body).headers["x-truncated-inputs"] == "2"
    body = {"inputs": {"table": TABLES["names"], "query": "how many"}}
    assert "x-truncated-inputs" not in client.post("/", json=body).headers
    body = {"inputs": {"table": TABLES["long cell"], "query": ["how many", "which"]}}
    assert client.post("/", json=body).headers["x-truncated-inputs"] == "2"


def test_what_the_model_cannot_read_is_refused_by_its_path(served: tuple[Any, Any]) -> None:
    client, _ = served
    wide = {f"c{number}": ["x"] for number in range(300)}
    assert (
        "`inputs`: the table has 300 columns" in post(client, {"inputs": {"table": wide, "query": "a"}}, 422)["error"]
    )
    long = {"inputs": [{"table": {"a": ["1"]}, "query": "a"}, {"table": {"a": ["1"]}, "query": "the fox " * 70}]}
    error = post(client, long, 422)
    assert "`inputs[1]`: the question and the names of the columns have" in error["error"]
    assert "at most 128" in error["error"]
    assert error["error_type"] == "validation"


def test_the_largest_tables_are_answered_beside_other_calls(served: tuple[Any, Any]) -> None:
    client, _ = served
    many = {"a": [str(number) for number in range(2000)], "b": ["x"] * 2000}
    assert post(client, {"inputs": {"table": many, "query": "which is 12?"}})["aggregator"]
    began_s = time.process_time()
    assert "4098 cells" in post(client, {"inputs": {"table": {"a": ["1"] * 4098}, "query": "a"}}, 422)["error"]
    assert time.process_time() - began_s < 1


def test_the_model_says_its_task(served: tuple[Any, Any]) -> None:
    client, oracle = served
    info = client.get("/info").json()
    assert (info["task"], info["tasks"]) == (TASK, [TASK])
    assert list(info["labels"].values()) == (["NONE", "SUM", "AVERAGE", "COUNT"] if oracle.aggregate else [])
    refused = client.post("/pipeline/question-answering", json={"inputs": {}})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "task")
