"""What tests of the launcher change of their process, and must not leave to other tests."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def launcher_log() -> Iterator[None]:
    """Give the launcher's logger back as it was, because `logs.configure` takes its lines from pytest."""
    logger = logging.getLogger("textmill_launcher")
    before = (logger.propagate, logger.level, list(logger.handlers))
    yield
    logger.propagate, logger.level, logger.handlers[:] = before
