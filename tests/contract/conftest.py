"""One router for all tests that leave the router as they found it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    """A router with a window of 2,048 tokens and prompts up to 1,500, whose shard answers abcdef... at once."""
    folder: Path = tmp_path_factory.mktemp("router")
    options = FakeShardOptions(num_slots=8, num_blocks=512)
    with RunningRouter(folder, options, max_total_tokens=2048, max_input_tokens=1500, model_sha="cafe") as running:
        yield running


@pytest.fixture(scope="session")
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened
