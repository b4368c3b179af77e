"""Whether the text of a call's arguments is a whole JSON object, and which brackets the text lacks at its end."""

import json
import re

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*("?)|[{}\[\]]', re.DOTALL)
_CLOSING = {"{": "}", "[": "]"}


def closing_brackets(text: str) -> str | None:
    """Return the brackets that make this text a JSON object, which are none if the text is one.

    None means that brackets alone are not enough, because the text breaks off inside a value or is no JSON.
    """
    if _is_object(text):
        return ""
    missing: list[str] = []
    for found in _STRING_OR_BRACKET.finditer(text):
        sign = found[0]
        if sign[0] == '"':
            if not found[1]:
                return None  # the string does not end
        elif sign in _CLOSING:
            missing.append(_CLOSING[sign])
        elif not missing or missing.pop() != sign:
            return None
    closing = "".join(reversed(missing))
    return closing if closing and _is_object(text + closing) else None


def _is_object(text: str) -> bool:
    try:
        # The value of a number does not matter, and Python reads no integer of more than 4,300 digits.
        return isinstance(json.loads(text, parse_int=str, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(word: str) -> None:
    raise ValueError(word)
