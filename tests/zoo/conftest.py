"""All tests of the zoo run torch in one thread: tiny tensors are slower in more, and sums have one order."""

from collections.abc import Iterator

import pytest
import torch
from transformers.utils.logging import disable_progress_bar


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
