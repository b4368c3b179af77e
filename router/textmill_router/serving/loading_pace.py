"""How soon a client that repeats its calls without a pause is told again that the model loads.

`@huggingface/inference` repeats a call that got 503 at once, two thousand times a second, whatever Retry-After says. A
browser hides the name of the client.
"""

from collections import OrderedDict

from starlette.types import Scope

PAUSE_S = 1.0
MAX_ADDRESSES = 1024
_IMPATIENT = b"@huggingface/inference"


class LoadingPace:
    """Remembers which addresses were told. The first answer comes at once, later ones after a pause."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, None] = OrderedDict()

    def pause_s(self, scope: Scope) -> float:
        """Return the seconds to wait before the call is answered, and note that the address is told."""
        headers = dict(scope["headers"])
        if _IMPATIENT not in headers.get(b"user-agent", b"") and b"origin" not in headers:
            return 0.0
        client = scope.get("client")
        address = client[0] if client else ""
        was_told = address in self._told
        self._told[address] = None
        self._told.move_to_end(address)
        if len(self._told) > MAX_ADDRESSES:
            self._told.popitem(last=False)
        return PAUSE_S if was_told else 0.0
