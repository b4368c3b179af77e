"""An error of a word that a field does not take lists the words that the field takes, wherever the field stands."""

from typing import Literal

import msgspec
import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.http.json_body import decode_json
from textmill_router.http.json_words import words_at


class Part(msgspec.Struct):
    kind: Literal["text", "image"] = "text"
    side: bool | Literal["left", "right"] = True


class Body(msgspec.Struct):
    parts: list[Part] | None = None
    by_name: dict[str, Part] = {}
    mode: Literal["fast", "slow"] | None = msgspec.field(default=None, name="how")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"how": "odd"}', "`how` must be one of fast, slow, found 'odd'"),
        (b'{"parts": [{}, {"kind": "odd"}]}', "`parts[1].kind` must be one of image, text, found 'odd'"),
        (b'{"parts": [{"side": "odd"}]}', "`parts[0].side` must be one of left, right, found 'odd'"),
        (b'{"by_name": {"a": {"kind": "odd"}}}', "kind` must be one of image, text, found 'odd'"),
    ],
)
def test_words_are_listed(body: bytes, message: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        decode_json(body, msgspec.json.Decoder(Body))
    assert message.replace("` must", "`: must") in str(refused.value)


def test_places_without_words_have_none() -> None:
    for path in ("", "parts", "parts[0]", "none.such", "how.below"):
        assert words_at(Body, path) == ([] if path != "how" else ["fast", "slow"])
