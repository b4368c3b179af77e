"""/openapi.json of each task without generation: its examples are answered, and answers and errors have its schemas."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.fakes.task_router import task_router
from tests.fakes.task_shards import TASK_SHARDS

FILE = b"\x89PNG and so on"  # the fake shard reads no format
# Routes of the family that need a model of another head, and say so.
OTHER_MODELS = ("/embed_sparse", "/rerank", "/v1/rerank", "/v1/audio/translations")


def opened(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def content_of(answer: httpx.Response) -> str:
    return answer.headers["content-type"].partition(";")[0]


def check_answer(document: dict[str, Any], name: str, operation: dict[str, Any], answer: httpx.Response) -> None:
    if answer.status_code == 422 and name.endswith(OTHER_MODELS):
        return
    assert answer.status_code == 200, (name, answer.text[:300])
    described = operation["responses"]["200"].get("content", {})
    kind = content_of(answer)
    assert kind in described, (name, kind, sorted(described))
    if kind == "application/json":
        schema = described[kind]["schema"]
        assert schema, name
        errors = [error.message for error in opened(document, schema).iter_errors(answer.json())]
        assert not errors, (name, errors, answer.text[:300])


@pytest.mark.parametrize("task", TASK_SHARDS)
def test_examples_are_answered_as_described(tmp_path: Path, task: str) -> None:
    with task_router(tmp_path, task, TASK_SHARDS[task]) as router, router.client() as client:
        document = client.get("/openapi.json").json()
        assert f"The task {task} at `POST /`" in document["info"]["description"]
        num_examples = 0
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                name = f"{task}: {method} {path}"
                target = path.replace("{task}", task).replace("{id}", "a").replace("{asset}", "index.html")
                if "requestBody" not in operation:
                    if method == "get" and "{" not in path and "content" in operation["responses"]["200"]:
                        check_answer(document, name, operation, client.get(path))
                    continue
                content = operation["requestBody"]["content"]
                if "application/json" in content:
                    assert "example" in content["application/json"], name
                    example = content["application/json"]["example"]
                    errors = opened(document, content["application/json"]["schema"]).iter_errors(example)
                    assert not [error.message for error in errors], name
                    check_answer(document, name, operation, client.request(method, target, json=example))
                    refused = client.request(method, target, json={"inputs": 7, "input": 7})
                    assert refused.status_code == 422, (name, refused.text)
                    described = operation["responses"]["422"]["content"]["application/json"]["schema"]
                    assert not list(opened(document, described).iter_errors(refused.json())), (name, refused.text)
                    num_examples += 1
                if "multipart/form-data" in content:
                    check_answer(
                        document, name, operation, client.request(method, target, files={"file": ("a.wav", FILE)})
                    )
        assert num_examples >= 4
