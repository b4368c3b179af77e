"""Fixtures of the tests with real processes and sockets."""

import pytest
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import write_byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("model")))
