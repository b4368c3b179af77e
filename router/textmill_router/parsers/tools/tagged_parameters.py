"""Splits an answer into text and calls, for all formats that write each parameter of a call in tags of its own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.tools.parameter_values import ParameterValue, new_value
from textmill_router.parsers.tools.parameters import Parameters
from textmill_router.parsers.tools.tool_format import NewId, ToolReader, ToolSpec

_MAX_NAME_CHARACTERS = 256
_ENDS_NAME = frozenset("<\n")


@dataclass(frozen=True, slots=True)
class TagRules:
    """The tags of a format: OPENING (CALL name END_OF_NAME parameter* END_OF_CALL)* CLOSING.

    A parameter is KEY key END_OF_KEY VALUE value END_OF_VALUE. All tags but the ends of names and keys begin with `<`.
    A format without CALL has its name behind OPENING, up to a space or a tag, and CLOSING ends the call.
    """

    opening: str
    closing: str
    key: str
    end_of_key: str
    end_of_value: str
    call: str = ""
    end_of_name: str = ""
    end_of_call: str = ""
    value: str = ""
    has_lines: bool = False  # values stand on lines of their own

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags that begin with `<`."""
        around = (self.opening, self.closing, self.call, self.end_of_call)
        inside = (self.key, self.end_of_key, self.value, self.end_of_value)
        return tuple(tag for tag in (*around, *inside) if tag.startswith("<"))

    def is_name(self, name: str) -> bool:
        """Whether the reader can read this name of a tool."""
        if not 0 < len(name) <= _MAX_NAME_CHARACTERS:
            return False
        if not self.call:
            return all(map(_is_name_character, name))
        return not _ENDS_NAME & set(name) and self.end_of_name[0] not in name

    def is_key(self, key: str) -> bool:
        """Whether the reader can read this name of a parameter."""
        return 0 < len(key) <= _MAX_NAME_CHARACTERS and not _ENDS_NAME & set(key) and self.end_of_key[0] not in key


def tag_reader(rules: TagRules) -> Callable[[Sequence[ToolSpec], NewId], ToolReader]:
    """Return the factory of readers for a format of these rules."""
    return lambda tools, new_id: TagReader(rules, tools, new_id)


class _State(Enum):
    TEXT = 0
    TAG = 1  # in a tag that may begin a call
    HEAD = 2  # after the opening tag
    NAME = 3
    NAME_END = 4  # after a name: only a tag that belongs to a call makes it the name of one
    BODY = 5  # in a call, between parameters
    KEY = 6
    KEY_END = 7  # before the tag of the value
    VALUE = 8
    VALUE_END = 9  # a tag has come that ends the call, though the value has not ended
    AFTER_CALL = 10


_IN_CALL = frozenset({_State.BODY, _State.KEY, _State.KEY_END, _State.VALUE, _State.VALUE_END})


class TagReader:
    """Reads calls, which may have any name between the tags. Without OPENING a call counts if its name is a tool's.

    Without OPENING and behind other text a call is held back to its end, because text may quote half a call.
    Parameters have the types that the tool's schema gives them. Arguments are given on as JSON text: strings as they
    come, other values when their tag closes. A value that is not of its type is a string.
    """

    def __init__(self, rules: TagRules, tools: Sequence[ToolSpec], new_id: NewId) -> None:
        self._rules = rules
        self._tools = {tool.name: tool for tool in tools}
        self._writer = AnswerWriter(new_id)
        self._state = _State.TEXT
        self._mark = ""  # the characters so far of a tag that has begun
        self._name: list[str] = []  # of the function or the parameter that is read
        self._is_tagged = False
        self._is_held = False  # the call that is read
        self._held_arguments: list[str] = []
        self._call_name = ""
        self._parameters = Parameters(None)
        self._separator = ""  # before the next parameter
        self._value: ParameterValue = new_value(frozenset({"string"}), has_lines=False)
        self._tail: list[str] = []  # tags behind a value that has not ended
        self.num_steps = 0  # the number of looks at a character
        self._tags = {
            _State.TAG: rules.tags,
            _State.HEAD: _some(rules.call, rules.opening),
            _State.NAME_END: _some(rules.key, rules.end_of_call, rules.closing),
            _State.BODY: _some(rules.key, rules.end_of_call, rules.closing),
            _State.KEY_END: _some(rules.value),
            _State.VALUE: _some(rules.end_of_value, rules.end_of_call, rules.closing),
            _State.VALUE_END: (rules.closing,),
            _State.AFTER_CALL: _some(rules.closing, rules.call, rules.opening),
        }
        self._handlers: dict[_State, Callable[[str, int], int]] = {
            _State.TEXT: self._read_text,
            _State.TAG: self._read_tag,
            _State.HEAD: self._read_head,
            _State.NAME: self._read_name if rules.call else self._read_bare_name,
            _State.NAME_END: self._read_tag,
            _State.BODY: self._read_tag,
            _State.KEY: self._read_name,
            _State.KEY_END: self._read_tag,
            _State.VALUE: self._read_value,
            _State.VALUE_END: self._read_value_end,
            _State.AFTER_CALL: self._read_tag,
        }

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            state = self._state
            end = self._handlers[state](text, position)
            if self._is_held and state in _IN_CALL:
                self._writer.hold(text[position:end])
            position = end
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag that has only begun.

        A model that ends by itself may leave out the tags behind the last value that has ended.
        """
        match self._state:
            case _ if self._is_held:
                self._writer.release(without=self._mark if was_cut else "")
            case _State.TEXT:
                if not self._writer.num_calls:
                    self._writer.release()
            case _State.TAG | _State.HEAD | _State.NAME | _State.NAME_END if not was_cut:
                self._writer.hold(self._mark)
                self._writer.release()
            case _State.VALUE if not was_cut and self._mark:
                self._add_arguments(self._value.push(self._mark))
            case _State.VALUE_END if not was_cut:
                self._add_arguments(self._value.finish())
                self._end_call()
            case _State.BODY if not was_cut:
                self._end_call()
            case _:
                pass
        return self._writer.take()

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        return self._writer.first_unfinished_call

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
            if self._state not in (_State.BODY, _State.KEY_END):
                self._writer.hold(char)
            return position + 1
        mark = self._mark + char
        if not any(tag.startswith(mark) for tag in self._tags[self._state]):
            is_other_tag = self._state is not _State.TAG and any(tag.startswith(mark) for tag in self._rules.tags)
            begun = self._mark if is_other_tag else ""
            self._mark = self._mark.removesuffix(begun)
            self._break()
            if begun:
                self._mark = begun
                self._state = _State.TAG
            return position
        self._mark = mark
        if mark in self._tags[self._state]:
            self._mark = ""
            self._take_tag(mark)
        return position + 1

    def _take_tag(self, tag: str) -> None:
        rules, state = self._rules, self._state
        if state is _State.TAG and tag not in (rules.opening, rules.call):
            self._writer.hold(tag)
            self._writer.release()  # the tag closes nothing, and is held back so that a cut answer has no half of a tag
            self._state = _State.TEXT
            return
        if state is _State.NAME_END:
            self._begin_call("".join(self._name), tag)
            state = self._state
        if tag == rules.opening:
            if state is _State.HEAD:
                self._writer.release()  # the tag before was text
            self._writer.hold(tag)
            self._is_tagged = True
            self._name = []
            self._state = _State.HEAD
        elif tag == rules.call:
            self._is_tagged = self._is_tagged and state is not _State.TAG
            self._writer.hold(tag)
            self._name = []
            self._state = _State.NAME
        elif tag == rules.key:
            self._name = []
            self._state = _State.KEY
        elif tag == rules.value:
            self._begin_value()
        elif tag == rules.end_of_call:
            self._end_call()
            self._state = _State.AFTER_CALL
        else:
            if state is _State.BODY:
                self._end_call()
            self._writer.drop()
            self._state = _State.TEXT

    def _read_head(self, text: str, position: int) -> int:
        char = text[position]
        if not self._rules.call and not self._mark and char not in SPACES and char != "<":
            self._state = _State.NAME
            return position
        return self._read_tag(text, position)

    def _read_name(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        is_function = self._state is _State.NAME
        end = self._rules.end_of_name if is_function else self._rules.end_of_key
        mark = self._mark + char
        if not end.startswith(mark):
            if self._mark or char in _ENDS_NAME or len(self._name) >= _MAX_NAME_CHARACTERS:
                self._break()
                return position
            self._name.append(char)
            if is_function:
                self._writer.hold(char)
            return position + 1
        self._mark = mark
        if mark != end:
            return position + 1
        self._mark = ""
        name = "".join(self._name)
        if not is_function:
            self._state = _State.KEY_END
            if not self._rules.value:
                self._begin_value()
        else:
            self._writer.hold(mark)
            if name and (self._is_tagged or name in self._tools):
                self._state = _State.NAME_END
            else:
                self._break()
        return position + 1

    def _read_bare_name(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if _is_name_character(char) and len(self._name) < _MAX_NAME_CHARACTERS:
            self._name.append(char)
            self._writer.hold(char)
            return position + 1
        if self._name and (char in SPACES or char == "<"):
            self._state = _State.NAME_END
        else:
            self._break()
        return position

    def _begin_call(self, name: str, tag: str) -> None:
        """Begin a call, because this tag has come behind its name."""
        tool = self._tools.get(name)
        self._parameters = Parameters(None if tool is None else tool.parameters)
        self._separator = ""
        self._state = _State.BODY
        self._is_held = self._writer.has_text and not self._is_tagged
        if self._is_held:
            self._call_name, self._held_arguments = name, []
            self._writer.hold(tag)
        else:
            self._writer.start_call(name)
        self._add_arguments("{")

    def _end_call(self) -> None:
        self._add_arguments("}")
        if self._is_held:
            self._is_held = False
            self._writer.start_call(self._call_name)
            self._writer.add_arguments("".join(self._held_arguments))
        self._writer.close_call()

    def _begin_value(self) -> None:
        key = "".join(self._name)
        self._value = new_value(self._parameters.types_of(key), has_lines=self._rules.has_lines)
        self._add_arguments(f"{self._separator}{json.dumps(key, ensure_ascii=False)}: ")
        self._separator = ", "
        self._state = _State.VALUE

    def _read_value(self, text: str, position: int) -> int:
        if not self._mark:
            end = self._value.find_tag(text, position)
            self.num_steps += end - position + 1
            if end > position:
                self._add_arguments(self._value.push(text[position:end]))
            if end == len(text):
                return end
            self._mark = "<"
            return end + 1
        self.num_steps += 1
        mark = self._mark + text[position]
        if not any(tag.startswith(mark) for tag in self._tags[_State.VALUE]):
            held, self._mark = self._mark, ""
            self._add_arguments(self._value.push(held))
            return position
        self._mark = mark
        if mark == self._rules.end_of_value:
            self._mark = ""
            self._add_arguments(self._value.finish())
            self._state = _State.BODY
        elif mark in self._tags[_State.VALUE]:
            self._mark = ""
            self._tail = [mark]
            self._state = _State.VALUE_END
        return position + 1

    def _read_value_end(self, text: str, position: int) -> int:
        """Read on behind a tag that ends the call or the calls. The tag was text if a value goes on behind the tag."""
        self.num_steps += 1
        char = text[position]
        mark = self._mark + char
        if not self._mark and char in SPACES:
            self._tail.append(char)
            return position + 1
        if self._rules.closing in self._tail or not self._rules.closing.startswith(mark):
            self._add_arguments(self._value.push("".join(self._tail)))
            self._state = _State.VALUE
            return position  # the method of that state judges a mark that may begin the closing tag of the value
        self._mark = mark
        if mark == self._rules.closing:
            self._mark = ""
            self._tail.append(mark)
        return position + 1

    def _add_arguments(self, text: str) -> None:
        if self._is_held:
            self._held_arguments.append(text)
        elif text:
            self._writer.add_arguments(text)

    def _break(self) -> None:
        """End the call that has begun, with the parameters so far, because the next character is no part of a call."""
        mark, self._mark = self._mark, ""
        state = self._state
        if self._is_held:
            self._is_held = False
            self._writer.release()
            self._state = _State.TEXT
            return
        if state in (_State.KEY, _State.KEY_END):
            end_of_key = self._rules.end_of_key if state is _State.KEY_END else ""
            mark = f"{self._rules.key}{''.join(self._name)}{end_of_key}{mark}"
        if state in (_State.BODY, _State.KEY, _State.KEY_END):
            self._writer.add_arguments("}")
            self._writer.close_call(is_whole=state is _State.BODY)
        self._writer.hold(mark)
        if state is not _State.AFTER_CALL or mark:
            self._writer.release()
        self._state = _State.TEXT


def _some(*tags: str) -> tuple[str, ...]:
    return tuple(tag for tag in tags if tag)


def _is_name_character(char: str) -> bool:
    return char.isalnum() or char in "_-.:/"
