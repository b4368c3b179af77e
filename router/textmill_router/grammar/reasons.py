"""Says in plain sentences why the grammar library refuses a grammar."""

import re
from collections.abc import Callable

MAX_SHOWN = 80  # characters of a client's expression in a sentence
MAX_SENTENCE = 300  # characters of a message that has no sentence here

_NOTHING = "no text matches it"
# The library names rows of its own table of states where no text goes on.
_NO_TEXT = frozenset({"NoExtension", "NoExtensionBias"})
_TYPES = "`array`, `boolean`, `integer`, `null`, `number`, `object` and `string`"
_KINDS = {
    "string": "a string",
    "array": "an array",
    "object": "an object",
    "f64": "a number",
    "positive integer": "a whole number of at least 0",
}
_AROUND = "looks at what stands around a place, which no grammar can"
_WORD = f"has a word boundary (`\\b`), which {_AROUND}"
_BORDER = "has a `^` or `$` inside, where only its own ends can be"


def reason_of(message: str) -> str:
    """Return why a grammar is refused, for the place behind "does not compile:".

    `message` is the library's, without the place in a text that the client did not write.
    """
    message = message.removeprefix("failed to compile JSON schema: ").strip()
    if message in _NO_TEXT:
        return _NOTHING
    if "regex parse error:" in message:
        return _of_expression(message)
    for pattern, sentence in _SENTENCES:
        match = pattern.search(message)
        if match is not None:
            return sentence(match)
    line = " ".join(message.split())
    return line if len(line) <= MAX_SENTENCE else f"{line[:MAX_SENTENCE]} ..."


def _of_expression(message: str) -> str:
    """Read the picture in which the regex library points at the fault: the expression, carets below, the fault."""
    lines = message.split("regex parse error:\n", 1)[1].split("\n")
    fault = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    carets = next((index for index, line in enumerate(lines) if line.strip() and not line.strip(" ^")), 0)
    shown = ""
    if carets:
        above, below = lines[carets - 1], lines[carets]
        start, stop = below.index("^"), below.rindex("^") + 1
        shown = f" at `{_short(above[start:stop])}`" if above[start:stop].strip() else " at its end"
    if "look-around" in fault:
        fault = f"it {_AROUND}"
    return f"a regular expression is wrong{shown}: {fault}"


def _of_border(match: "re.Match[str]") -> str:
    kind, expression = match[1], match[2]
    return f"the regular expression `{_short(expression)}` {_WORD if 'Word' in kind else _BORDER}"


def _of_nothing(match: "re.Match[str]") -> str:
    why = match[1].strip()
    return _NOTHING if why in ("", "anyOf is empty") else f"{_NOTHING}: {why}"


def _of_type(match: "re.Match[str]") -> str:
    return f"`{_short(match[1])}` is no type of JSON Schema; the types are {_TYPES}"


def _of_kind(match: "re.Match[str]") -> str:
    kind, name, part, found = match.groups()
    where = f"each entry of `{name}`" if part else f"`{name}`"
    return f"{where} must be {_KINDS.get(kind.lower(), kind)}, found {_short(found)}"


_SENTENCES: list[tuple[re.Pattern[str], Callable[["re.Match[str]"], str]]] = [
    (re.compile(r"lookarounds not supported yet; (\w+) in regex /(.*)/", re.DOTALL), _of_border),
    (re.compile(r"Unsatisfiable schema:?(.*)", re.DOTALL), _of_nothing),
    (re.compile(r"Invalid type: (.*)", re.DOTALL), _of_type),
    (re.compile(r"Expected (.+?) for '(\w+)'( item)?, got (.*)", re.DOTALL), _of_kind),
    (
        re.compile(r"^(\w+) must be an? (array|object|string)$"),
        lambda match: f"`{match[1]}` must be {_KINDS[match[2]]}",
    ),
    (
        re.compile("^type must be a string or array of strings$"),
        lambda _: "`type` must be a string or an array of strings",
    ),
]


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
