"""A call that one endpoint makes of another: the body is given again, and the answer is collected."""

from dataclasses import dataclass, field

from starlette.types import Message, Receive

from textmill_router.http.error_responses import Header


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
