"""The schemas and instances of llguidance's tests, read from their Rust files, as cases of `bench.schema_suites`.

A folder holds `parser/tests/test_json_*.rs` of https://github.com/guidance-ai/llguidance. Tests that compute their
schemas (`match`, loops) are counted as not read.
"""

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.schema_suites import Case, Judge, outcomes

# Keywords of llguidance's own, and an engine of its own for them.
OTHERS = ("test_json_x_guidance.rs",)
_FUNCTION = re.compile(r"((?:#\[(?:rstest|test|case)[^\n]*\n(?:[^\n#f][^\n]*\n)*)+)(?:pub )?fn (\w+)\(")
_STRING = re.compile(r'r"([^"]*)"|"((?:[^"\\]|\\.)*)"', re.DOTALL)


class _NotRead(Exception):
    """A test computes what this reader only copies."""


def cases_of(path: Path) -> Iterator[Case]:
    """The tests of one file; a test that cannot be read raises `_NotRead` inside and is left out."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    text = "\n".join(
        "" if line.strip().startswith("//") else re.sub(r"\s//[^\"]*$", "", line) for line in text.split("\n")
    )
    names = dict(_statics(text))
    for found in _FUNCTION.finditer(text):
        attributes, name = found.groups()
        parameters, end = _enclosed(text, found.end() - 1)
        body, _ = _enclosed(text, text.index("{", end))
        try:
            yield from _cases(f"{path.name}: {name}", attributes, parameters, body, names)
        except (_NotRead, ValueError, IndexError):
            yield Case(f"{path.name}: {name}", None, [])


def _cases(name: str, attributes: str, parameters: str, body: str, statics: Mapping[str, str]) -> Iterator[Case]:
    if " match " in f" {body}" or "for " in body or "format!" in body:
        raise _NotRead
    names: dict[str, str] = dict(statics)
    names.update(re.findall(r"const (\w+): \w+ = ([^;]+);", body))
    names.update((key, value) for key, value in re.findall(r"let (\w+) = &?(json!\(.*?\));\n", body, re.DOTALL))
    fixed: list[str] = []
    listed: list[tuple[str, list[str]]] = []
    for parameter in _split(parameters):
        key = parameter.rpartition("]")[2].split(":")[0].strip()
        if "#[values" in parameter:
            inner, _ = _enclosed(parameter, parameter.index("("))
            listed.append((key, _split(inner)))
        elif key:
            fixed.append(key)
    rows = [
        _split(_enclosed(attributes, match.end() - 1)[0]) for match in re.finditer(r"#\[case(?:::\w+)?\(", attributes)
    ]
    found: dict[str, tuple[Any, list[tuple[Any, bool]]]] = {}
    for row in rows or [[]]:
        for values in itertools.product(*(options for _, options in listed)):
            bound = (
                names | dict(zip(fixed, row, strict=False)) | dict(zip((key for key, _ in listed), values, strict=True))
            )
            for call in re.finditer(r"json_(schema_check|err_test)\(", body):
                arguments = _split(_enclosed(body, call.end() - 1)[0])
                schema = _value(arguments[0], bound)
                instances = found.setdefault(json.dumps(schema), (schema, []))[1]
                if call.group(1) == "schema_check":
                    instances.append((_value(arguments[1], bound), _value(arguments[2], bound)))
    for schema, instances in found.values():
        yield Case(name, schema, instances)


def _statics(text: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"static ref (\w+): Value =\s*(json!)(\()", text):
        inner, _ = _enclosed(text, found.end() - 1)
        yield found.group(1), f"json!({inner})"


def _enclosed(text: str, start: int) -> tuple[str, int]:
    """What stands between the bracket at `start` and the one that closes it, and the place behind."""
    depth, place = 0, start
    while place < len(text):
        string = _STRING.match(text, place)
        if string:
            place = string.end()
            continue
        depth += (text[place] in "([{") - (text[place] in ")]}")
        place += 1
        if depth == 0:
            return text[start + 1 : place - 1], place
    raise _NotRead


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket and no string."""
    parts, begin, place, depth = [], 0, 0, 0
    while place < len(text):
        string = _STRING.match(text, place)
        if string:
            place = string.end()
            continue
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if text[place] == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
        place += 1
    return [part for part in (*parts, text[begin:].strip()) if part]


def _value(expression: str, names: Mapping[str, str]) -> Any:
    """The JSON of an expression: a literal, `json!` of one, or a name."""
    expression = expression.strip().lstrip("&")
    if expression in names:
        return _value(names[expression], names)
    if expression.startswith("json!("):
        expression, _ = _enclosed(expression, expression.index("("))
    if expression.strip() in names:
        return _value(names[expression.strip()], names)
    pieces, place = [], 0
    for string in _STRING.finditer(expression):
        pieces.append(_plain(expression[place : string.start()], names))
        raw = string.group(1)
        text = re.sub(r"\\u\{(\w+)\}", lambda code: f"\\u{int(code[1], 16):04x}", string.group(2) or "")
        pieces.append(json.dumps(raw) if raw is not None else f'"{text}"')
        place = string.end()
    pieces.append(_plain(expression[place:], names))
    return json.loads(re.sub(r",(\s*[\]}])", r"\1", "".join(pieces)))


def _plain(text: str, names: Mapping[str, str]) -> str:
    def word(found: "re.Match[str]") -> str:
        if found[0] in names:
            return json.dumps(_value(names[found[0]], names))
        if found[0] in ("true", "false", "null", "e", "E"):
            return found[0]
        raise _NotRead

    return re.sub(r"(?<![\d.])[A-Za-z_]\w*", word, text)


def main() -> int:
    """Print what is refused, wrong or not written, then the counts. Exit code 1 if an instance came out wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    judge, counts, times_s = Judge(), Counter[str](), list[float]()
    for path in sorted(arguments.folder.glob("test_json_*.rs")):
        if path.name in OTHERS:
            continue
        for case in cases_of(path):
            if case.schema is None:
                counts["test: not read"] += 1
                print(f"not read {case.name}")
            else:
                counts.update(outcomes(case, judge, closes_objects=False, times_s=times_s))
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    return 1 if any("COMES OUT" in name or "CHECK REFUSES" in name for name in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
