"""The snippets of the playground name only arguments that clients take. Any other field goes into `extra_body`."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from openai.resources import Completions
from openai.resources.chat import Completions as ChatCompletions
from textmill_router.api.playground.page import FOLDER
from textmill_router.api.route_table import openapi_document

SCHEMAS = openapi_document()["components"]["schemas"]
CLIENTS = {
    "HUB_CHAT": (InferenceClient.chat_completion, "ChatRequest"),
    "HUB_GENERATE": (InferenceClient.text_generation, "GenerateParameters"),
    "OPENAI_CHAT": (ChatCompletions.create, "ChatRequest"),
    "OPENAI_COMPLETIONS": (Completions.create, "CompletionRequest"),
}


def names_of(constant: str) -> set[str]:
    """Return the names of a constant of snippets.js, with those of the constants that its text takes in."""
    text = (FOLDER / "snippets.js").read_text()
    found = re.search(rf"const {constant} = (?:names\()?[`\"]([^`\"]*)[`\"]", text)
    assert found is not None
    parts = found[1].split()
    inner = [names_of(part[2:-1]) for part in parts if part.startswith("${")]
    return set().union({part for part in parts if not part.startswith("${")}, *inner)


@pytest.mark.parametrize("name", CLIENTS)
def test_names_are_fields_of_the_route_that_the_client_takes(name: str) -> None:
    call: Callable[..., Any]
    call, schema = CLIENTS[name]
    taken = set(inspect.signature(call).parameters) - {"self", "extra_body"}
    fields = set(SCHEMAS[schema]["properties"]) | ({"stream"} if name == "HUB_GENERATE" else set())
    names = names_of(name)
    assert names - (taken & fields) == set()
    assert {"temperature", "stop", "seed"} <= names
