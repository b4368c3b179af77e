"""All tests of the shard's parts run torch in one thread, because tiny tensors gain nothing from more.

On a busy machine two threads that wait for each other in each small operation make a test slower by a factor of 10.
"""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def pixel_limit() -> Iterator[None]:
    """Give Pillow its own limit back after a shard was loaded with another one."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
