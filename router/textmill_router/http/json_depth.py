"""How deep JSON may nest, because the code that walks through schemas, messages and variables does so by recursion."""

import re

MAX_JSON_DEPTH = 128  # far deeper than schemas and messages are, far less than Python's stack

# A string without an end reaches to the end of the text. A search that began again at each quote would take for ever.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def is_too_deep(json_bytes: bytes) -> bool:
    """Return whether brackets outside of strings nest deeper than `MAX_JSON_DEPTH`; cheap where brackets are few."""
    if json_bytes.count(b"[") + json_bytes.count(b"{") <= MAX_JSON_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", json_bytes)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            return True
    return False
