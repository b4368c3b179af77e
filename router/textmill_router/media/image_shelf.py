"""What the router keeps of images that were read: what each becomes in a prompt, and the tensors of the last ones."""

from collections import OrderedDict
from dataclasses import dataclass

from textmill_router.media.media_item import Grid, TensorPart
from textmill_router.media.replacement import Replacement
from textmill_router.media.worker_messages import ImageRefusal

MAX_KEPT_VERDICTS = 1024
MAX_KEPT_TENSOR_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image becomes in a prompt."""

    replacement: Replacement
    grid: Grid | None
    num_tensor_bytes: int


class ImageShelf:
    """Verdicts by digest, the last used ones, and tensors by digest, as many as fit `max_tensor_bytes`."""

    def __init__(self, max_tensor_bytes: int = MAX_KEPT_TENSOR_BYTES) -> None:
        self._max_tensor_bytes = max_tensor_bytes
        self._verdicts: OrderedDict[bytes, ImageFacts | ImageRefusal] = OrderedDict()
        self._tensors: OrderedDict[bytes, tuple[TensorPart, ...]] = OrderedDict()
        self._num_bytes = 0

    def verdict(self, digest: bytes) -> ImageFacts | ImageRefusal | None:
        """Return what is known of an image."""
        found = self._verdicts.get(digest)
        if found is not None:
            self._verdicts.move_to_end(digest)
        return found

    def keep_verdict(self, digest: bytes, verdict: ImageFacts | ImageRefusal) -> None:
        """Keep a verdict, which stays the same for the digest."""
        self._verdicts[digest] = verdict
        if len(self._verdicts) > MAX_KEPT_VERDICTS:
            self._verdicts.popitem(last=False)

    def tensors(self, digest: bytes) -> tuple[TensorPart, ...] | None:
        """Return the tensors of an image where they are kept."""
        found = self._tensors.get(digest)
        if found is not None:
            self._tensors.move_to_end(digest)
        return found

    def keep_tensors(self, digest: bytes, tensors: tuple[TensorPart, ...]) -> None:
        """Keep tensors, and give up those used longest ago. Tensors larger than the shelf are not kept."""
        size = _num_bytes(tensors)
        if digest in self._tensors or size > self._max_tensor_bytes:
            return
        self._tensors[digest] = tensors
        self._num_bytes += size
        while self._num_bytes > self._max_tensor_bytes:
            _, gone = self._tensors.popitem(last=False)
            self._num_bytes -= _num_bytes(gone)


def _num_bytes(tensors: tuple[TensorPart, ...]) -> int:
    return sum(len(tensor.data) for tensor in tensors)
