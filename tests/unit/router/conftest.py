"""The vocabularies of the families, made once for all tests of a run."""

import pytest

from tests.fakes.chat_families import Family
from tests.fakes.chat_templates import NAMES


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    return {name: Family(name) for name in NAMES}
