"""Torch runs in one thread in all tests of the zoo, which is faster for tiny tensors and gives sums one order."""

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
