"""The shapes of answers that a client can parse, by what the client says of itself.

huggingface_hub from 1.1.5 on raises an error for the object that the published page shows for zero-shot-classification.
"""

import re

from starlette.types import Scope

from textmill_router.http.json_body import header_of
from textmill_router.tasks.call import ClientShapes

_HUB = re.compile(rb"hf_hub/(\d+)\.(\d+)\.(\d+)")
_FIRST_LIST_VERSION = (1, 1, 5)


def shapes_for(scope: Scope, task_shapes: str) -> ClientShapes:
    """Return the shapes for the client of a call. `task_shapes` is the setting --task-shapes."""
    agent = header_of(scope, b"user-agent") or b""
    match = _HUB.search(agent)
    if task_shapes != "client" or match is None:
        return ClientShapes()
    return ClientShapes(zero_shot_is_list=tuple(int(part[:6]) for part in match.groups()) >= _FIRST_LIST_VERSION)
