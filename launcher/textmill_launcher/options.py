"""How a flag of the launcher is declared: which texts it takes, what `--help` says, and which child reads the value.

The flags themselves are the fields of `Settings` in `settings.py`, and in `tgi_options.py` those of
text-generation-inference that have no effect here or are refused.
"""

import enum
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any


class BadValue(ValueError):
    """A text that an option refuses. `str()` says which values the option accepts."""


Parse = Callable[[str], object]


def text(value: str) -> str:
    """Take any text. The reader of the settings refuses blank text for every option."""
    return value


def batch_sizes(value: str) -> str:
    """Take a comma-separated list of numbers of requests, or 0, which is the empty list."""
    parts = value.split(",")
    if value != "0" and not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise BadValue("whole numbers >= 1 with commas between them, or 0 for none")
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


def number(low: float, high: float = math.inf) -> Parse:
    """Take a number of a closed range."""
    wanted = f"a number >= {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"

    def parse(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            raise BadValue(wanted) from None
        if not low <= found <= high:
            raise BadValue(wanted)
        return found

    return parse


def root_path(value: str) -> str:
    """Take a path that begins with a slash and does not end with one."""
    if not re.fullmatch(r"(/[\w.~-]+)+", value):
        raise BadValue("a path that begins with a slash and does not end with one, such as /llm")
    return value


def fraction(value: str) -> float:
    """Take a share of a whole, above 0 and at most 1."""
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise BadValue("a number above 0 and at most 1")
    return share


def open_share(value: str) -> float:
    """Take a part of a whole that is neither nothing nor all."""
    try:
        share = fraction(value)
    except BadValue:
        share = 1.0
    if share == 1.0:
        raise BadValue("a number above 0 and below 1")
    return share


logit = number(-100.0, 100.0)
"""Takes an amount that can be added to a logit."""


def seconds(value: str) -> float:
    """Take a duration of zero or more seconds."""
    try:
        duration_s = float(value)
    except ValueError:
        duration_s = math.nan
    if not (math.isfinite(duration_s) and duration_s >= 0.0):
        raise BadValue("a number of seconds >= 0")
    return duration_s


def positive_seconds(value: str) -> float:
    """Take a duration of more than zero seconds."""
    try:
        duration_s = seconds(value)
    except BadValue:
        duration_s = 0.0
    if duration_s == 0.0:
        raise BadValue("a number of seconds above 0")
    return duration_s


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


def url_path(value: str) -> str:
    """Take the path of a route."""
    if not re.fullmatch(r"/[\w./~:@!$&'()*+,;=%-]*", value):
        raise BadValue("a path that begins with a slash, such as /predict")
    return value


def collector_url(value: str) -> str:
    """Take the URL of a collector of traces."""
    if not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?/?", value):
        raise BadValue("http:// or https:// with a host and a port, such as http://127.0.0.1:4317")
    return value


def ip_address(value: str) -> str:
    """Take an IPv4 or IPv6 literal; `localhost` stands for 127.0.0.1."""
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise BadValue("an IP address such as 0.0.0.0, 127.0.0.1 or ::") from None


def tcp_address(value: str) -> str:
    """Take an IP address and a port, as one text. `localhost` stands for 127.0.0.1.

    An address that means all interfaces is refused, because the value is also the address to connect to.
    """
    wanted = "an IP address of one interface and a port, such as 127.0.0.1:9000 or [::1]:9000"
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(ip_address(host.removeprefix("[").removesuffix("]")))
    except (BadValue, ValueError):
        raise BadValue(wanted) from None
    has_brackets = host.startswith("[") and host.endswith("]")
    is_port = port.isascii() and port.isdecimal() and 1 <= int(port) <= 65_535
    if address.is_unspecified or has_brackets != (address.version == 6) or not is_port:
        raise BadValue(wanted)
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def word_list(value: str) -> tuple[str, ...]:
    """Take a comma-separated list."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


LOG_LEVELS = {
    "trace": "DEBUG",
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "warning": "WARNING",
    "error": "ERROR",
}


def log_level(value: str) -> str:
    """Take a level of `logging`. In a filter such as `info,router=debug` the last part without a target counts."""
    general = [part.strip().lower() for part in value.split(",") if "=" not in part]
    if not general:
        return "INFO"
    if general[-1] not in LOG_LEVELS:
        raise BadValue("one of " + ", ".join(LOG_LEVELS))
    return LOG_LEVELS[general[-1]]


def lines(value: str) -> tuple[str, ...]:
    """Take a list with one entry on each line."""
    entries = value.splitlines()
    if not all(entry.strip() for entry in entries):
        raise BadValue("some text on each line")
    return tuple(entries)


V1_ERRORS = ("mixed", "openai", "tgi")
METRICS_ALIASES = ("vllm",)
POOLINGS = ("auto", "cls", "mean", "last", "max", "none")
TASK_SHAPES = ("client", "seed")
TOOL_FORMATS = (
    *("harmony", "openai", "gpt-oss"),
    *("deepseek_v3", "deepseekv3", "deepseek_v31", "deepseekv31", "kimi_k2", "command_r", "granite"),
    *("functools", "phi4_mini_json", "phi4_mini", "minimax_m1", "minimax", "minimax_m2", "glm45", "glm47"),
    *("hermes", "llama3_json", "mistral", "qwen3_coder", "qwen3_xml", "pythonic", "llama4_pythonic", "json"),
)
REASONING_FORMATS = (
    *("think", "mistral", "harmony", "command_r"),
    *("deepseek_r1", "deepseek-r1", "qwen3", "openai_gptoss", "gpt-oss"),
)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "fp8_e4m3fn", "fp8_e5m2")
ATTENTION_BACKENDS = ("triton", "flash", "reference")


class Child(enum.Flag):
    """The processes to which the launcher hands a value on."""

    ROUTER = enum.auto()
    SHARD = enum.auto()


NOBODY = Child(0)


class Group(enum.Enum):
    """The sections of `--help` and of docs/flags.md. The value is the heading."""

    MODEL = "model"
    LIMITS = "limits"
    MEMORY = "memory and computing"
    SERVING = "serving"
    SECURITY = "security"
    LOGS = "logs"
    TGI = "TGI compatibility"


@dataclass(frozen=True, slots=True)
class Ignored:
    """A flag of another server whose value is checked and dropped. The log gets one line with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A flag of another server whose wish cannot be met. The start ends with the reason and with what to do."""

    reason: str
    instead: str
    harmless: tuple[object, ...] = ()  # values that wish for what happens here anyway; they are dropped


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
    has_flag: bool = True  # False: the option is an environment variable alone
    has_variable: bool = True  # False: the option is a flag alone
    verdict: Ignored | Refused | None = None  # None: the option works
    group: Group = Group.TGI
    name: str = ""  # of the field in `Settings`

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables of the flag and of its aliases, in this order."""
        if not self.has_variable:
            return ()
        return tuple(flag.lstrip("-").replace("-", "_").upper() for flag in (self.flag, *self.aliases))

    @property
    def title(self) -> str:
        """The flag, or the variable of an option that has no flag."""
        return self.flag if self.has_flag else self.variables[0]

    @property
    def metavar(self) -> str:
        """The word that stands for the value in the help text."""
        if self.is_repeatable:
            return "TEXT"
        if isinstance(self.parse, Choice):
            return "|".join(self.parse.allowed)
        if self.parse is boolean:
            return "true|false"
        if self.parse is log_level:
            return "LEVEL"
        return "TEXT" if self.parse in (text, ip_address, collector_url, url_path, word_list, lines) else "N"

    @property
    def accepted(self) -> str:
        """The accepted values in the words of a refusal, or `any text`."""
        try:
            self.parse("\0")
        except BadValue as error:
            return str(error)
        return "a comma-separated list" if self.is_repeatable and self.parse is not lines else "any text"

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


def options_of(settings_type: Any, first_of_group: Mapping[str, Group]) -> tuple[Option, ...]:
    """Return the flags among the fields of a settings class, each with its field's name, in the order of the class.

    `first_of_group` names the first field of each group. The fields after it, up to the next such name, belong to it.
    """
    options, group = [], Group.TGI
    for entry in fields(settings_type):
        if "option" in entry.metadata:
            group = first_of_group.get(entry.name, group)
            options.append(replace(entry.metadata["option"], name=entry.name, group=group))
    return tuple(options)
