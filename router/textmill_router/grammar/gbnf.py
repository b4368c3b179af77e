"""Reads grammars in GBNF, the form of llama.cpp, which sglang calls EBNF, and writes them in llguidance's Lark.

Each terminal of the written grammar matches exactly one character. The library cuts a text into terminals before it
looks at the rules, and longer terminals could be cut in a way that no rule wants. Terminals of one character leave one
cut.

    root   ::= "yes" | "no" | number ("," number)*     # a comment
    number ::= "-"? [0-9]+ ("." [0-9]{1,3})?
"""

import re
from dataclasses import dataclass

from textmill_router.grammar.lark import escape

START_RULE = "root"
MAX_DEPTH = 100  # of groups in groups
MAX_REPEATS = 10_000
_SHOWN = 20  # characters of a grammar in a refusal

_BLANKS = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|[0-9]+[A-Za-z_-][A-Za-z0-9_-]*")
_REPEATS = re.compile(r"\{\s*(\d{0,9})\s*(,?)\s*(\d{0,9})\s*\}")
_CODES = {"x": 2, "u": 4, "U": 8}  # digits behind the letter
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
_THEMSELVES = frozenset("\\\"'[]^-/")


class BadGrammar(Exception):
    """A text is no grammar in GBNF; the message says where and why."""


@dataclass(frozen=True, slots=True)
class LarkRules:
    """Rules in Lark, and the name of the rule that the whole text matches."""

    start: str
    rules: tuple[str, ...]


def read_gbnf(text: str, prefix: str) -> LarkRules:
    """Return the grammar with rules whose names begin with `prefix`. Raises BadGrammar."""
    return _Reader(text, prefix).read()


class _Reader:
    """Reads one text from left to right. Methods that read an item return its Lark."""

    def __init__(self, text: str, prefix: str) -> None:
        self._text = text
        self._prefix = prefix
        self._place = 0
        self._names: dict[str, str] = {}  # in Lark, of the rules that are named anywhere
        self._bodies: dict[str, str] = {}
        self._used_at: dict[str, int] = {}

    def read(self) -> LarkRules:
        self._skip()
        while self._place < len(self._text):
            name = self._rule_name()
            if name is None:
                raise self._fault("the name of a rule and `::=`")
            if name in self._bodies:
                raise BadGrammar(f"the rule `{name}` is written twice")
            self._bodies[name] = self._alternatives(0)
        for name, place in self._used_at.items():
            if name not in self._bodies:
                raise BadGrammar(f"line {self._line(place)} names the rule `{name}`, which is not written")
        if START_RULE not in self._bodies:
            raise BadGrammar(f"there is no rule `{START_RULE}`, with which a grammar begins")
        rules = tuple(f"{self._lark_name(name)}: {body}" for name, body in self._bodies.items())
        return LarkRules(self._lark_name(START_RULE), rules)

    def _alternatives(self, depth: int) -> str:
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._advance(1)
            options.append(self._sequence(depth))
        return " | ".join(options)

    def _sequence(self, depth: int) -> str:
        items: list[str] = []
        while (item := self._item(depth)) is not None:
            items.append(self._repeated(item))
        return " ".join(items) or '""'

    def _item(self, depth: int) -> str | None:
        """Return one item, or None where the sequence ends."""
        sign = self._peek()
        if sign == '"':
            return self._literal()
        if sign == "[":
            return self._class()
        if sign == ".":
            self._advance(1)
            return "/(?s:.)/"
        if sign == "(":
            return self._group(depth + 1)
        if sign in ("", "|", ")") or self._is_rule_next():
            return None
        found = _NAME.match(self._text, self._place)
        if found is None:
            raise self._fault("a text, a class of characters, a group or the name of a rule")
        self._used_at.setdefault(found[0], self._place)
        self._advance(len(found[0]))
        return self._lark_name(found[0])

    def _group(self, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise BadGrammar(f"groups stand in groups more than {MAX_DEPTH} times")
        self._advance(1)
        inner = self._alternatives(depth)
        if self._peek() != ")":
            raise self._fault("`)`")
        self._advance(1)
        return f"({inner})"

    def _repeated(self, item: str) -> str:
        while (sign := self._peek()) and sign in "*+?{":
            if sign != "{":
                self._advance(1)
                item = f"({item}){sign}"
                continue
            found = _REPEATS.match(self._text, self._place)
            if found is None or not (found[1] or found[3]):
                raise self._fault("`{2}`, `{2,}` or `{2,5}`")
            least = int(found[1] or 0)
            most = int(found[3]) if found[3] else None if found[2] else least
            if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
                raise self._fault(f"numbers of repeats that rise, of at most {MAX_REPEATS}")
            self._advance(len(found[0]))
            item = '""' if most == 0 else f"({item}){{{least},{'' if most is None else most}}}"
        return item

    def _literal(self) -> str:
        self._place += 1
        characters: list[str] = []
        while self._peek() != '"':
            characters.append(self._character('`"`'))
        self._advance(1)
        return " ".join(f"/{escape(character)}/" for character in characters) or '""'

    def _class(self) -> str:
        self._place += 1
        is_negated = self._peek() == "^"
        self._place += is_negated
        ranges: list[str] = []
        while self._peek() != "]":
            first = last = self._character("`]`")
            if self._peek() == "-" and self._text[self._place + 1 : self._place + 2] != "]":
                self._place += 1
                last = self._character("`]`")
            if last < first:
                raise BadGrammar(f"line {self._line(self._place)}: the range {first!r} to {last!r} does not rise")
            ranges.append(f"\\x{{{ord(first):x}}}-\\x{{{ord(last):x}}}")
        if not ranges:
            raise self._fault("a character in the class")
        self._advance(1)
        return f"/[{'^' if is_negated else ''}{''.join(ranges)}]/"

    def _character(self, end: str) -> str:
        """Read one character, or what a backslash says; `end` closes what the character is in."""
        sign = self._peek()
        if not sign:
            raise self._fault(end)
        self._place += 1
        if sign != "\\":
            return sign
        kind = self._peek()
        if kind in _CODES:
            digits = self._text[self._place + 1 : self._place + 1 + _CODES[kind]]
            if not re.fullmatch(f"[0-9A-Fa-f]{{{_CODES[kind]}}}", digits):
                raise self._fault(f"{_CODES[kind]} hexadecimal digits behind `\\{kind}`")
            code = int(digits, 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self._fault("the code of a character")
            self._place += 1 + _CODES[kind]
            return chr(code)
        if kind not in _LETTERS and kind not in _THEMSELVES:
            raise self._fault("one of the escapes n, r, t, x, u, U or a sign")
        self._place += 1
        return _LETTERS.get(kind, kind)

    def _rule_name(self) -> str | None:
        """Read the name of a rule and `::=`, or return None where no rule begins."""
        name = self._is_rule_next()
        if name:
            self._advance(len(name))
            self._advance(3)
        return name or None

    def _is_rule_next(self) -> str:
        """Return the name of the rule that begins here, or nothing."""
        found = _NAME.match(self._text, self._place)
        if found is None:
            return ""
        after = _BLANKS.match(self._text, found.end())
        assert after is not None
        return found[0] if self._text.startswith("::=", after.end()) else ""

    def _lark_name(self, name: str) -> str:
        return self._names.setdefault(name, f"{self._prefix}{len(self._names)}")

    def _peek(self) -> str:
        """Return the character at the place, or "" at the end."""
        return self._text[self._place : self._place + 1]

    def _advance(self, num_characters: int) -> None:
        """Go on behind some characters, and the blanks and comments that follow."""
        self._place += num_characters
        self._skip()

    def _skip(self) -> None:
        blanks = _BLANKS.match(self._text, self._place)
        assert blanks is not None
        self._place = blanks.end()

    def _line(self, place: int) -> int:
        return self._text.count("\n", 0, place) + 1

    def _fault(self, wanted: str) -> BadGrammar:
        """Return the refusal of the text at the place."""
        found = repr(self._text[self._place : self._place + _SHOWN]) if self._peek() else "the end"
        return BadGrammar(f"line {self._line(self._place)}: wanted {wanted}, found {found}")
