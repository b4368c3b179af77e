"""The public suite `langchain-tests` for chat models, run with langchain-openai against the server at $SERVER.

The suite has a venv of its own, so that `make test` does not collect this file. docs/conformance.md has the command.
"""

import os
from typing import Any

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestTextmill(ChatModelIntegrationTests):
    """The suite with the abilities that the server has for every model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        server = os.environ["SERVER"]
        # langchain-openai asks servers other than OpenAI's for the usage of a stream only with `stream_usage`.
        return {
            "model": "tgi",
            "base_url": f"{server}/v1",
            "api_key": "none",
            "temperature": 0,
            "frequency_penalty": 1.0,  # a small model repeats itself inside a string up to the limit
            "max_tokens": 200,
            "stream_usage": True,
        }

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        """The name of the model that is served, in place of `tgi`, which means any model."""
        listed: str = httpx.get(f"{os.environ['SERVER']}/v1/models").json()["data"][0]["id"]
        return listed
