"""A call that one endpoint makes of another: the body is given again, and the answer is collected."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Message, Receive

from textmill_router.http.error_responses import Header

_REFUSAL = msgspec.json.Decoder(dict[str, Any])
# TGI's words stand before the sentence of a refused input.
_FIRST_NAME = re.compile(r"(Input validation error: )?`(\w+)")


@dataclass(slots=True)
class InnerAnswer:
    """The answer that an endpoint has sent, collected in the place of a connection."""

    status: int = 0  # 0 where nothing was sent, because the client has left
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""

    async def send(self, message: Message) -> None:
        """Take a message in the place of the connection."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
        else:
            self.body += message.get("body", b"")


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read before, and then the messages that come after the body."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def name_instance(refusal: bytes, index: int, own: Collection[str]) -> bytes:
    """Return the body of an error, in either dialect, whose message names the instance that failed.

    `own` are the fields that the instance itself has. A message that begins with the path of one of them gets the whole
    path (`instances[2].inputs`), and any other message begins with the instance.
    """
    fields = _REFUSAL.decode(refusal)
    holder = fields["error"] if isinstance(fields.get("error"), dict) else fields
    key = "error" if isinstance(holder.get("error"), str) else "message"
    message = str(holder.get(key, ""))
    first = _FIRST_NAME.match(message)
    if first is not None and first[2] in own:
        holder[key] = f"{first[1] or ''}`instances[{index}].{message[first.start(2) :]}"
    else:
        holder[key] = f"instances[{index}]: {message}"
    return msgspec.json.encode(fields)
