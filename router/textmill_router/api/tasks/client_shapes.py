"""The shapes of answers that a client can parse, by what the client says of itself.

huggingface_hub from 1.1.5 on raises an error for the object that the published page shows for zero-shot-classification.
@huggingface/inference from 4.13.15 on raises an error for the list of image-to-text. A browser hides the name of the
client, and sends `Origin`.
"""

import re
from dataclasses import replace

from starlette.types import Scope

from textmill_router.api.tasks.sound_accept import sound_format_of
from textmill_router.http.json_body import header_of
from textmill_router.tasks.call import ClientShapes

_VERSION = rb"(\d+)\.(\d+)\.(\d+)"
_HUB = re.compile(rb"hf_hub/" + _VERSION)
_JAVASCRIPT = re.compile(rb"@huggingface/inference/" + _VERSION)
_FIRST_LIST_VERSION = (1, 1, 5)
_FIRST_OBJECT_VERSION = (4, 13, 15)


def shapes_for(scope: Scope, task_shapes: str) -> ClientShapes:
    """Return the shapes for the client of a call. `task_shapes` is the setting --task-shapes."""
    shapes = ClientShapes(sound_format=sound_format_of(scope))
    if task_shapes != "client":
        return shapes
    agent = header_of(scope, b"user-agent") or b""
    return replace(
        shapes,
        zero_shot_is_list=_is_from(_HUB, agent, _FIRST_LIST_VERSION),
        caption_is_object=_is_from(_JAVASCRIPT, agent, _FIRST_OBJECT_VERSION)
        or header_of(scope, b"origin") is not None,
    )


def _is_from(pattern: re.Pattern[bytes], agent: bytes, first: tuple[int, int, int]) -> bool:
    """Whether the agent names a version from the first one on."""
    match = pattern.search(agent)
    return match is not None and tuple(int(part[:6]) for part in match.groups()) >= first
