"""Qwen3-Coder and Qwen 3.5, which write each parameter in a tag of its own, and strings without quotes.

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.tools.call_shape import (
    CallShape,
    InOrder,
    JsonValue,
    Maybe,
    OneOf,
    Piece,
    Repeated,
    Text,
    TextUntil,
    WrittenCall,
)
from textmill_router.parsers.tools.parameters import Parameter, Parameters, json_type
from textmill_router.parsers.tools.tool_format import NewId, ToolFormat, ToolSpec

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FUNCTION, _END_OF_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_OF_PARAMETER = "<parameter=", "</parameter>"
_MAX_NAME_CHARACTERS = 256
_BREAKS_NAME = frozenset("<\n")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}  # as the published template writes them
_IN_JSON = re.compile(r'["<]')
_IN_JSON_STRING = re.compile(r'["\\\n]')
_NULLS = ("null", "None")


class _State(Enum):
    TEXT = 0
    TAG = 1  # in a tag that may begin a call
    HEAD = 2  # after the opening tag
    NAME = 3
    BODY = 4  # in a call, between parameters
    KEY = 5
    VALUE = 6
    AFTER_CALL = 7


_TAGS = {
    _State.TAG: (_OPENING, _FUNCTION, _CLOSING),
    _State.HEAD: (_FUNCTION, _OPENING),
    _State.BODY: (_PARAMETER, _END_OF_FUNCTION, _CLOSING),
    _State.AFTER_CALL: (_CLOSING, _FUNCTION, _OPENING),
}


class _StringValue:
    """A string, given on as it comes, but for the new line behind the first tag and the new line before the last tag.

    `may_be_null`: the words `null` and `None` alone are null.
    """

    def __init__(self, *, may_be_null: bool) -> None:
        self._is_at_start = True
        self._has_newline = False  # at the end so far; the new line counts only if more text follows
        self._word: str | None = "" if may_be_null else None  # the text, while the text may become the word for null
        self._has_quote = False

    def find_tag(self, text: str, position: int) -> int:
        """Return where the next tag may begin, or the length of the text."""
        found = text.find("<", position)
        return len(text) if found < 0 else found

    def push(self, text: str) -> str:
        """Return the JSON text that this part of the value brings."""
        if self._has_newline:
            text, self._has_newline = "\n" + text, False
        if self._is_at_start and text:
            text = text.removeprefix("\n")
            self._is_at_start = False
        if text.endswith("\n"):
            text, self._has_newline = text[:-1], True
        if self._word is not None:
            self._word += text
            if any(word.startswith(self._word) for word in _NULLS) and not self._has_newline:
                return ""
            if self._word in _NULLS:
                return ""
            text, self._word = self._word, None
        quote = "" if self._has_quote else '"'
        self._has_quote = True
        return quote + json.dumps(text, ensure_ascii=False)[1:-1]

    def finish(self) -> str:
        """Return the rest of the JSON text at the closing tag."""
        if self._word in _NULLS:
            return "null"
        quote = "" if self._has_quote else '"'
        return quote + json.dumps(self._word or "", ensure_ascii=False)[1:-1] + '"'


class _OtherValue:
    """A value that is known at its closing tag: the JSON value that its text is, else a string.

    `types` are those that the schema allows. Inside a JSON string the closing tag is text; such a string ends with its
    line, so that a quote too many does not swallow the rest of the answer.
    """

    def __init__(self, types: frozenset[str]) -> None:
        self._types = types
        self._parts: list[str] = []
        self._is_json: bool | None = None  # None while only spaces have come
        self._is_in_string = False
        self._is_escaped = False

    def find_tag(self, text: str, position: int) -> int:
        """Return where the next tag may begin, or the length of the text."""
        if self._is_json is None:
            rest = text[position:].lstrip(SPACES)
            if not rest:
                return len(text)
            self._is_json = rest[0] in '{["'
        while position < len(text):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = (_IN_JSON_STRING if self._is_in_string else _IN_JSON).search(text, position)
            if found is None:
                return len(text)
            position = found.end()
            match found[0]:
                case "<":
                    return position - 1
                case "\\":
                    self._is_escaped = True
                case '"':
                    self._is_in_string = self._is_json and not self._is_in_string
                case _:
                    self._is_in_string = False
        return position

    def push(self, text: str) -> str:
        """Keep this part of the value, and return no text yet."""
        self._parts.append(text)
        return ""

    def finish(self) -> str:
        """Return the JSON text of the value at the closing tag."""
        text = "".join(self._parts)
        word = text.strip(SPACES)
        word = _PYTHON_WORDS.get(word, word)
        try:
            kind = json_type(json.loads(word, parse_constant=_no_number))
        except (ValueError, RecursionError):
            kind = ""
        if kind and (kind in self._types or "string" not in self._types):
            return word
        return json.dumps(text.removeprefix("\n").removesuffix("\n"), ensure_ascii=False)


def _no_number(word: str) -> float:
    raise ValueError(word)


class Qwen3CoderReader:
    """Splits an answer into text and calls. A call without the opening tag counts if its name is that of a tool.

    Parameters have the types that the tool's schema gives them. Arguments are given on as JSON text: strings as they
    come, other values when their tag closes. A value that is not of its type is a string.
    """

    def __init__(self, tools: Sequence[ToolSpec], new_id: NewId) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._writer = AnswerWriter(new_id)
        self._state = _State.TEXT
        self._mark = ""  # the characters so far of a tag that has begun
        self._name: list[str] = []  # of the function or the parameter that is read
        self._is_tagged = False
        self._parameters = Parameters(None)
        self._separator = ""  # before the next parameter
        self._value: _StringValue | _OtherValue = _StringValue(may_be_null=False)
        self.num_steps = 0  # the number of looks at a character
        self._handlers: dict[_State, Callable[[str, int], int]] = {
            _State.TEXT: self._read_text,
            _State.TAG: self._read_tag,
            _State.HEAD: self._read_tag,
            _State.NAME: self._read_name,
            _State.BODY: self._read_tag,
            _State.KEY: self._read_name,
            _State.VALUE: self._read_value,
            _State.AFTER_CALL: self._read_tag,
        }

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            position = self._handlers[self._state](text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag that has only begun."""
        match self._state:
            case _State.TEXT:
                if not self._writer.num_calls:
                    self._writer.release()
            case _State.TAG | _State.HEAD | _State.NAME if not was_cut:
                self._writer.hold(self._mark)
                self._writer.release()
            case _State.VALUE if not was_cut and self._mark:
                self._add_arguments(self._value.push(self._mark))
            case _:
                pass
        return self._writer.take()

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun and its arguments have not ended."""
        return self._state in (_State.BODY, _State.KEY, _State.VALUE)

    # ---- one method for each state, which takes a character or more, or changes the state

    def _read_text(self, text: str, position: int) -> int:
        found = text.find("<", position)
        end = len(text) if found < 0 else found
        self.num_steps += end - position + 1
        if end > position:
            self._writer.add_text(text[position:end])
        if found < 0:
            return end
        self._mark = "<"
        self._state = _State.TAG
        return end + 1

    def _read_tag(self, text: str, position: int) -> int:
        """Read one of the tags of the state. Spaces may stand before the tag where the state is not inside text."""
        self.num_steps += 1
        char = text[position]
        if not self._mark and char in SPACES:
            if self._state is not _State.BODY:
                self._writer.hold(char)
            return position + 1
        mark = self._mark + char
        if not any(tag.startswith(mark) for tag in _TAGS[self._state]):
            self._break()
            return position
        self._mark = mark
        if mark in _TAGS[self._state]:
            self._mark = ""
            self._take_tag(mark)
        return position + 1

    def _take_tag(self, tag: str) -> None:
        state = self._state
        match tag:
            case "<tool_call>":
                if state is _State.HEAD:
                    self._writer.release()  # the tag before was text
                self._writer.hold(tag)
                self._is_tagged = True
                self._state = _State.HEAD
            case "<function=":
                self._is_tagged = self._is_tagged and state is not _State.TAG
                self._writer.hold(tag)
                self._name = []
                self._state = _State.NAME
            case "<parameter=":
                self._name = []
                self._state = _State.KEY
            case "</function>":
                self._writer.add_arguments("}")
                self._state = _State.AFTER_CALL
            case _:  # the closing tag
                if state is _State.BODY:
                    self._writer.add_arguments("}")
                if state is _State.TAG:
                    self._writer.hold(tag)
                    self._writer.release()  # the tag closes nothing
                else:
                    self._writer.drop()
                self._state = _State.TEXT

    def _read_name(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        is_function = self._state is _State.NAME
        if char != ">":
            if char in _BREAKS_NAME or len(self._name) >= _MAX_NAME_CHARACTERS:
                self._break()
                return position
            self._name.append(char)
            if is_function:
                self._writer.hold(char)
            return position + 1
        name = "".join(self._name)
        if not is_function:
            self._begin_value(name)
        elif name and (self._is_tagged or name in self._tools):
            self._begin_call(name)
        else:
            self._writer.hold(char)
            self._break()
        return position + 1

    def _begin_call(self, name: str) -> None:
        tool = self._tools.get(name)
        self._parameters = Parameters(None if tool is None else tool.parameters)
        self._separator = ""
        self._writer.start_call(name)
        self._writer.add_arguments("{")
        self._state = _State.BODY

    def _begin_value(self, key: str) -> None:
        types = self._parameters.types_of(key)
        self._value = _StringValue(may_be_null="null" in types) if _is_string(types) else _OtherValue(types)
        self._writer.add_arguments(f"{self._separator}{json.dumps(key, ensure_ascii=False)}: ")
        self._separator = ", "
        self._state = _State.VALUE

    def _read_value(self, text: str, position: int) -> int:
        if self._mark:
            self.num_steps += 1
            mark = self._mark + text[position]
            if _END_OF_PARAMETER.startswith(mark):
                self._mark = mark
                if mark == _END_OF_PARAMETER:
                    self._mark = ""
                    self._add_arguments(self._value.finish())
                    self._state = _State.BODY
                return position + 1
            held, self._mark = self._mark, ""
            self._add_arguments(self._value.push(held))
            return position
        end = self._value.find_tag(text, position)
        self.num_steps += end - position + 1
        if end > position:
            self._add_arguments(self._value.push(text[position:end]))
        if end == len(text):
            return end
        self._mark = "<"
        return end + 1

    def _add_arguments(self, text: str) -> None:
        if text:
            self._writer.add_arguments(text)

    def _break(self) -> None:
        """End the call that has begun, with the parameters so far, because the next character is no part of a call."""
        mark, self._mark = self._mark, ""
        if self._state is _State.KEY:
            mark = _PARAMETER + "".join(self._name)
        if self.is_in_call:
            self._writer.add_arguments("}")
        self._writer.hold(mark)
        if self._state is not _State.AFTER_CALL or mark:
            self._writer.release()
        self._state = _State.TEXT


# ---- for grammars


def _write_call(name: str, schema: Mapping[str, Any]) -> WrittenCall:
    """Write a call with the parameters in the order of the schema. Raises ValidationFailed if there is no form."""
    if not _is_name(name):
        raise _refusal(name, "its name", "holds a sign that ends a name")
    parameters = Parameters(schema)
    declared = parameters.declared(name)
    pieces: list[Piece] = []
    for parameter in declared:
        if not _is_name(parameter.name):
            if parameter.is_required:
                raise _refusal(name, f"the name of the parameter {parameter.name!r}", "holds a sign that ends a name")
            continue
        value = _written_value(parameters, parameter, name)
        piece = InOrder((Text(f"{_PARAMETER}{parameter.name}>\n"), value, Text("\n")))
        pieces.append(piece if parameter.is_required else Maybe(piece))
    if not declared and parameters.others is not None:
        value = _written_value(parameters, Parameter("", parameters.others, False), name)
        key = TextUntil(">", ("[A-Za-z_][A-Za-z0-9_.-]{0,63}",))
        pieces.append(Repeated(InOrder((Text(_PARAMETER), key, Text("\n"), value, Text("\n")))))
    return WrittenCall(f"{_FUNCTION}{name}>\n", InOrder((*pieces, Text(_END_OF_FUNCTION))))


def _written_value(parameters: Parameters, parameter: Parameter, tool_name: str) -> Piece:
    """Return a value and its closing tag. A string that may be of another type too is JSON, in quotes."""
    types = parameters.types_of(parameter.name)
    end = f"\n{_END_OF_PARAMETER}"
    if not _is_string(types):
        return InOrder((JsonValue(parameter.schema), Text(end)))
    rules = parameters.string_rules(parameter.name)
    if rules is None:
        raise _refusal(
            tool_name, f"the parameter {parameter.name!r}", "has several alternatives with rules for strings"
        )
    allowed = [rules["const"]] if "const" in rules else rules.get("enum")
    if allowed is not None:
        words = [str(value) for value in allowed if _can_be_said(value, types)] + ["null"] * ("null" in types)
        if not words:
            raise _refusal(tool_name, f"the parameter {parameter.name!r}", "has no value that can be written")
        return OneOf(tuple(Text(f"{word}{end}") for word in words))
    expressions = []
    if rules.keys() & {"minLength", "maxLength"}:
        least, most = rules.get("minLength", 0), rules.get("maxLength", "")
        if not (isinstance(least, int) and (most == "" or isinstance(most, int))):
            raise _refusal(tool_name, f"the parameter {parameter.name!r}", "has a length that is no whole number")
        expressions.append(rf"(?s:.{{{least},{most}}})\n")
    if "pattern" in rules:
        expressions.append(rf"{_whole_pattern(str(rules['pattern']), tool_name)}\n")
    return TextUntil(_END_OF_PARAMETER, tuple(expressions) or (r"(?s:.*)\n",))


def _is_string(types: frozenset[str]) -> bool:
    """Whether a value is written without quotes, because the value can only be a string or null."""
    return types <= {"string", "null"} and "string" in types


def _can_be_said(value: object, types: frozenset[str]) -> bool:
    return isinstance(value, str) and _END_OF_PARAMETER not in value and not ("null" in types and value in _NULLS)


def _whole_pattern(pattern: str, tool_name: str) -> str:
    """Return an expression that matches the whole of a string in which the pattern is found."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    bare = re.sub(r"\\.|\[\^?[^\]]*\]", "", inner)
    if "^" in bare or "$" in bare or ((begins or ends) and "|" in bare):
        raise _refusal(tool_name, f"the pattern {pattern!r}", "has an anchor inside")
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME_CHARACTERS and not (_BREAKS_NAME | {">"}) & set(name)


def _refusal(tool_name: str, what: str, why: str) -> ValidationFailed:
    return ValidationFailed(
        f"the tool `{tool_name}` cannot be enforced in this model's format: {what} {why}", field="tools"
    )


_SHAPE = CallShape(
    _write_call,
    opening=_OPENING,
    closing=_CLOSING,
    before="\n",
    after="\n",
    between="\n",
    any_call=r"\x{3c}function=",  # a reader takes a call without the opening tag too
)

QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    aliases=("qwen3_xml",),
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _FUNCTION in template and _PARAMETER in template,
    new_reader=Qwen3CoderReader,
    shape=lambda tokens: _SHAPE,
)
