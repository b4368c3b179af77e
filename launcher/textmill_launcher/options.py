"""How a flag of the launcher is declared: which texts it takes, what `--help` says, and which child reads the value.

The flags themselves are the fields of `Settings` in `settings.py`.
"""

import enum
import ipaddress
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any


class BadValue(ValueError):
    """A text that an option refuses. `str()` says which values the option accepts."""


Parse = Callable[[str], object]


def text(value: str) -> str:
    """Take any text. The reader of the settings refuses blank text for every option."""
    return value


def integer(low: int, high: int | None = None) -> Parse:
    """Take a whole number of a closed range."""
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise BadValue(wanted) from None
        if number < low or (high is not None and number > high):
            raise BadValue(wanted)
        return number

    return parse


def fraction(value: str) -> float:
    """Take a share of a whole, above 0 and at most 1."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 < number <= 1.0:
        raise BadValue("a number above 0 and at most 1")
    return number


def open_share(value: str) -> float:
    """Take a part of a whole that is neither nothing nor all."""
    if fraction(value) == 1.0:
        raise BadValue("a number above 0 and below 1")
    return float(value)


def logit(value: str) -> float:
    """Take an amount that can be added to a logit."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not -100.0 <= number <= 100.0:
        raise BadValue("a number from -100 to 100")
    return number


def seconds(value: str) -> float:
    """Take a duration of zero or more seconds."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0.0):
        raise BadValue("a number of seconds >= 0")
    return number


def boolean(value: str) -> bool:
    """Take true or false in the spellings that environment files use."""
    match value.strip().lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
        case _:
            raise BadValue("true or false")


@dataclass(frozen=True, slots=True)
class Choice:
    """A parser that takes one of a few words."""

    allowed: tuple[str, ...]

    def __call__(self, value: str) -> str:
        if value not in self.allowed:
            raise BadValue("one of " + ", ".join(self.allowed))
        return value


def ip_address(value: str) -> str:
    """Take an IPv4 or IPv6 literal; `localhost` stands for 127.0.0.1."""
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise BadValue("an IP address such as 0.0.0.0, 127.0.0.1 or ::") from None


def word_list(value: str) -> tuple[str, ...]:
    """Take a comma-separated list."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


V1_ERRORS = ("mixed", "openai", "tgi")
TOOL_FORMATS = (
    *("harmony", "openai", "gpt-oss"),
    *("deepseek_v3", "deepseekv3", "deepseek_v31", "deepseekv31", "command_r", "phi4_mini_json", "granite"),
    *("hermes", "llama3_json", "mistral", "qwen3_coder", "qwen3_xml", "pythonic", "llama4_pythonic", "json"),
)
REASONING_FORMATS = (
    *("think", "mistral", "harmony", "command_r"),
    *("deepseek_r1", "deepseek-r1", "qwen3", "openai_gptoss", "gpt-oss"),
)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Child(enum.Flag):
    """The processes to which the launcher hands a value on."""

    ROUTER = enum.auto()
    SHARD = enum.auto()


NOBODY = Child(0)


@dataclass(frozen=True, slots=True)
class Option:
    """One flag and its environment variable, which has the flag's name in upper snake case."""

    parse: Parse
    help: str
    default: object = None  # None: unset, the room that uses the value decides
    is_switch: bool = False  # a flag without a value
    is_repeatable: bool = False
    is_secret: bool = False
    short: str | None = None
    aliases: tuple[str, ...] = ()  # further flags, each with its own environment variable
    platform_variables: tuple[str, ...] = ()  # set by a hosting platform; they win over the option's own variable
    to: Child = NOBODY  # the children whose command line carries the value
    flag_there: str | None = None  # the flag of that command line; None: the launcher's own
    name: str = ""  # of the field in `Settings`

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables of the flag and of its aliases, in this order."""
        return tuple(flag.lstrip("-").replace("-", "_").upper() for flag in (self.flag, *self.aliases))

    @property
    def metavar(self) -> str:
        """The word that stands for the value in the help text."""
        if isinstance(self.parse, Choice):
            return "|".join(self.parse.allowed)
        if self.parse is boolean:
            return "true|false"
        return "TEXT" if self.parse in (text, ip_address, word_list) else "N"

    def flag_for(self, child: Child) -> str | None:
        """Return the flag that carries the value to a child; None where that child does not read the value."""
        return (self.flag_there or self.flag) if child in self.to else None


def option(parse: Parse, help_text: str, default: object = None, **facts: Any) -> Any:
    """Return a dataclass field that is a flag. `facts` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(parse, help_text, default, **facts)})


def derived_option(parse: Parse, help_text: str, **facts: Any) -> Any:
    """Return a field that is a flag. Where the flag is not given, `load_settings` works out the value."""
    return field(default=MISSING, metadata={"option": Option(parse, help_text, **facts)})


def switch(help_text: str, **facts: Any) -> Any:
    """Return a boolean field whose flag takes no value: False without the flag, True with the flag."""
    return option(boolean, help_text, False, is_switch=True, **facts)


def options_of(settings_type: Any) -> tuple[Option, ...]:
    """Return the flags among the fields of a settings class, each with its field's name, in the order of the class."""
    declared = [entry for entry in fields(settings_type) if "option" in entry.metadata]
    return tuple(replace(entry.metadata["option"], name=entry.name) for entry in declared)
