"""The seam for those who want to know which prefixes the KV cache holds."""

from collections.abc import Sequence
from typing import Protocol

from textmill_router.request import GenerationRequest


class CacheWatcher(Protocol):
    """Is told each change of the prefix index at once. Must neither block nor raise."""

    def on_stored(
        self, request: GenerationRequest, parent: bytes | None, digests: Sequence[bytes], packed_ids: bytes
    ) -> None:
        """A run of full blocks of a request has entered the index.

        `parent` is the hash of the block before the run, None at the begin of the text. `packed_ids` has the tokens of
        the run as unsigned 32-bit integers.
        """

    def on_removed(self, digest: bytes) -> None:
        """A block has left the index."""

    def on_cleared(self) -> None:
        """The whole index is empty, because an epoch has begun or ended."""
