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


@pytest.mark.parametrize("name", CLIENTS)
def test_names_are_fields_of_the_route_that_the_client_takes(name: str) -> None:
    found = re.search(rf"const {name} = names\(`([^`]*)`\)", (FOLDER / "snippets.js").read_text())
    assert found is not None
    call: Callable[..., Any]
    call, schema = CLIENTS[name]
    taken = set(inspect.signature(call).parameters) - {"self", "extra_body"}
    fields = set(SCHEMAS[schema]["properties"]) | ({"stream"} if name == "HUB_GENERATE" else set())
    names = set(found[1].split())
    assert names - (taken & fields) == set()
    assert {"temperature", "stop", "seed"} <= names
