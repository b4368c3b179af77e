"""The fixtures of the tests with real processes and sockets."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.processes import LaunchedServer

CLIENT_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture
def client(real_server: LaunchedServer) -> Iterator[openai.OpenAI]:
    """The openai client of the demo model's server, without retries."""
    with openai.OpenAI(
        base_url=f"{real_server.base_url}/v1",
        api_key="none",
        timeout=CLIENT_TIMEOUT_S,
        max_retries=0,
        http_client=httpx.Client(trust_env=False, timeout=CLIENT_TIMEOUT_S),
    ) as opened:
        yield opened
