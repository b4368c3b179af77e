"""The Jinja environment of chat templates, which bounds what a template may use, its time and its size."""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from textmill_router.chat.marked_operations import OperatorsAsFilters, bound_to_marked_text, teach
from textmill_router.chat.marked_text import MARK, with_marks_hidden

MAX_RENDER_S = 5.0
MAX_RENDERED_CHARACTERS = 32_000_000
MAX_REPEATED_ITEMS = 1_000_000  # of `text * number`
MAX_EXPONENT = 64
# A width of seven digits, or a width that is an argument: `%*d`, `{:{width}}`.
_WIDE_FORMAT = re.compile(r"[%{][^%{}]*\d{7}|%[-+ #0-9]*\.?\*|\{[^{}]*:[^{}]*\{")
_NOT_ASCII = re.compile(f"[^\\x00-\\x7f{MARK}]+")


class RenderBudget(threading.local):
    """The time on the monotonic clock at which the rendering of this thread must have ended."""

    deadline_s = float("inf")


class _Generation(Extension):
    """Renders `{% generation %}...{% endgeneration %}`, which marks the model's texts for training, as its inside."""

    tags = {"generation"}  # noqa: RUF012 - the library's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("give_back"), [], [], body).set_lineno(line)

    def give_back(self, caller: Macro) -> str:
        said: str = caller()
        return said


class _Clock(Extension):
    """Makes each turn of a loop and each call of a macro look at the clock."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.budget = RenderBudget()

    def look(self) -> None:
        if time.monotonic() > self.budget.deadline_s:
            raise TemplateError(f"the template did not end within {MAX_RENDER_S:g} s")

    def put_into(self, tree: nodes.Template) -> None:
        """Put a look at the clock at the beginning of the body of every loop and macro."""
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            look = nodes.ExprStmt(self.call_method("look", lineno=node.lineno)).set_lineno(node.lineno)
            node.body.insert(0, look)  # type: ignore[attr-defined]


class _Sandbox(ImmutableSandboxedEnvironment):
    """Keeps a template from Python's inside, from changing values and from making something huge at once."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(count, int):
                    _check_size(len(value) * count)
        elif operator == "%":
            _check_format(left)
        elif isinstance(right, int | float):
            _check_exponent(right)
        return with_marks_hidden(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method or a macro; a width that a text's method takes (`ljust`) is bounded."""
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_widths((*args, *kwargs.values()))
            __obj = bound_to_marked_text(__obj, args)
        return with_marks_hidden(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the library's safe `format` of a text, once the widths of the text are checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


class ChatSandbox:
    """Compiles and renders templates. One sandbox serves all templates of a process, in several threads at a time."""

    def __init__(self) -> None:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, _Clock, loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = to_json
        for name, check in _LENGTHENING_FILTERS.items():
            environment.filters[name] = _checked_filter(environment.filters[name], check)
        teach(environment)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = strftime_now
        del environment.globals["lipsum"]
        self._environment = environment
        clock = environment.extensions[_Clock.identifier]
        assert isinstance(clock, _Clock)
        self._clock = clock

    def parse(self, source: str) -> nodes.Template:
        """Return the syntax tree. Raises jinja2.TemplateSyntaxError."""
        return self._environment.parse(source)

    def compile(self, source: str) -> jinja2.Template:
        """Return the compiled template. Raises jinja2.TemplateSyntaxError."""
        tree = OperatorsAsFilters().visit(self.parse(source))
        self._clock.put_into(tree)
        code = self._environment.compile(tree)
        return jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Return the text. Raises jinja2.TemplateError, and any error of the template's operations on the values."""
        self._clock.budget.deadline_s = time.monotonic() + MAX_RENDER_S
        parts = []
        num_characters = 0
        for part in template.generate(variables):
            num_characters += len(part)
            if num_characters > MAX_RENDERED_CHARACTERS:
                raise TemplateError(f"the template made more than {MAX_RENDERED_CHARACTERS} characters")
            parts.append(part)
        return "".join(parts)


def raise_exception(message: object) -> NoReturn:
    """Raise TemplateError; templates call this function for conversations that they refuse."""
    raise TemplateError(str(message))


def strftime_now(form: str) -> str:
    """Return the local time of this machine in the given form."""
    return datetime.now().strftime(form)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as models were trained on it: unlike Jinja's own filter, nothing is escaped for HTML."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    # Marks are left alone, because they are no part of the text.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _checked_filter(apply: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Return a filter that makes its text longer, behind a check of how much longer."""

    @functools.wraps(apply)
    def checked(text: Any, *args: Any, **kwargs: Any) -> Any:
        check(text, *args, *kwargs.values())
        return apply(text, *args, **kwargs)

    return checked


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int):
            _check_size(value)


def _check_format(text: Any, *_: Any) -> None:
    if isinstance(text, str) and _WIDE_FORMAT.search(text):
        raise SecurityError("the template formats to a width of seven digits or more, or to one that it does not name")


def _check_filter_widths(_: Any, *values: Any) -> None:
    _check_widths(values)


_LENGTHENING_FILTERS: Mapping[str, Callable[..., None]] = {
    "center": _check_filter_widths,
    "indent": _check_filter_widths,
    "format": _check_format,
}


def _check_size(num_items: int) -> None:
    if num_items > MAX_REPEATED_ITEMS:
        raise SecurityError(f"the template repeats something to {num_items} items, the limit is {MAX_REPEATED_ITEMS}")


def _check_exponent(exponent: float) -> None:
    if exponent > MAX_EXPONENT:
        raise SecurityError(f"the template raises to the power of {exponent:g}, the limit is {MAX_EXPONENT}")
