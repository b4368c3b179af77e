"""How a flag of the shard is declared: the texts that the flag takes, its help text, and its default.

The flags themselves are the fields of the settings classes in `settings.py`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_STEP_TOKENS = 1024
KV_CACHE_DTYPES = ("auto", "fp8_e4m3fn", "fp8_e5m2")
ATTENTION_BACKENDS = ("triton", "flash", "reference")
MAX_LORA_RANK = 512
SWAPS = ("qkv", "gate_up", "packed_linear", "rms_norm")  # see layers/module_swaps.py
DEVICE_SWAPS = ("rotary_turn", "residual", "experts")  # of a GPU, see layers/device_swaps.py

WRITING_TASKS = ("text-generation", "text2text-generation", "summarization", "translation", "conversational")
ROW_TASKS = (  # see tasks/task_table.py
    *("feature-extraction", "sentence-similarity", "fill-mask", "text-classification", "zero-shot-classification"),
    *("rerank", "token-classification", "question-answering"),
)
MEDIA_TASKS = (  # rows that are files, see tasks/media_loader.py
    *("image-classification", "object-detection", "image-segmentation", "zero-shot-image-classification"),
    *("zero-shot-object-detection", "depth-estimation"),
    *("image-to-text", "visual-question-answering", "document-question-answering"),
    *("audio-classification", "automatic-speech-recognition"),
)
TABLE_TASK = "table-question-answering"  # see tasks/table_loader.py
STRING_TASKS = ("text-to-audio",)  # rows that are strings, see tasks/speaking_loader.py
TASKS = (*WRITING_TASKS, *ROW_TASKS, *MEDIA_TASKS, TABLE_TASK, *STRING_TASKS)
POOLINGS = ("auto", "cls", "mean", "last", "max", "none")


class BadValue(ValueError):
    """A text that an option refuses. `str()` says which values the option accepts."""


def text(value: str) -> str:
    """Take any text."""
    return value


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Take a whole number that is not below `low`, and not above `high` where one is given."""
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


def address(value: str) -> str:
    """Take a host and a port, such as 127.0.0.1:9000 or [::1]:9000."""
    host, _, port = value.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not is_bracketed) or not port.isascii() or not port.isdecimal():
        raise BadValue("a host and a port, such as 127.0.0.1:9000 or [::1]:9000")
    if not 1 <= int(port) <= 65_535:
        raise BadValue("a host and a port from 1 to 65535")
    return value


def bytes_or_auto(value: str) -> int | None:
    """Take a number of bytes, or the word `auto`, which is None."""
    if value == "auto":
        return None
    try:
        return integer(0)(value)
    except BadValue:
        raise BadValue("a whole number >= 0, or auto") from None


def _number(value: str, *, low: float, high: float, wanted: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low < number <= high:
        raise BadValue(wanted)
    return number


def fraction(value: str) -> float:
    """Take a share of a whole, above 0 and at most 1."""
    return _number(value, low=0.0, high=1.0, wanted="a number above 0 and at most 1")


def share(value: str) -> float:
    """Take a part of a whole that is neither nothing nor all."""
    wanted = "a number above 0 and below 1"
    number = _number(value, low=0.0, high=1.0, wanted=wanted)
    if number == 1.0:
        raise BadValue(wanted)
    return number


def finite(value: str) -> float:
    """Take an amount that can be added to a logit, -100 to 100."""
    return _number(value, low=-100.000001, high=100.0, wanted="a number from -100 to 100")


def seconds(value: str) -> float:
    """Take a duration above 0 and at most a day, in seconds."""
    return _number(value, low=0.0, high=86_400.0, wanted="seconds, above 0 and at most a day")


def choice(*allowed: str) -> Callable[[str], str]:
    """Take one of a few words."""

    def parse(value: str) -> str:
        if value not in allowed:
            raise BadValue("one of " + ", ".join(allowed))
        return value

    return parse


def device_name(value: str) -> str:
    """Take the name of a device, which `device.py` turns into a device of torch."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise BadValue("auto, cpu, cuda or cuda:N")
    return value


def words(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """Take a comma-separated list of a few words."""

    def parse(value: str) -> tuple[str, ...]:
        given = tuple(part.strip() for part in value.split(",") if part.strip())
        if not set(given) <= set(allowed):
            raise BadValue("a comma-separated list of " + ", ".join(allowed))
        return given

    return parse


def batch_sizes(value: str) -> tuple[int, ...]:
    """Take a comma-separated list of numbers of requests, or 0, which is the empty list."""
    wanted = "whole numbers >= 1 with commas between them, or 0 for none"
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise BadValue(wanted) from None
    if sizes == (0,):
        return ()
    if min(sizes) < 1:
        raise BadValue(wanted)
    return sizes


def boolean(value: str) -> bool:
    """Take true or false in the spellings that environment files use."""
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if value.lower() not in known:
        raise BadValue("true or false")
    return known[value.lower()]


@dataclass(frozen=True, slots=True)
class Option:
    """One flag and its environment variable, which has the flag's name in upper snake case."""

    parse: Callable[[str], Any]
    help: str
    default: Any = None
    is_required: bool = False
    is_switch: bool = False  # a flag without a value
    aliases: tuple[str, ...] = ()  # further flags of the same meaning, each with its own environment variable
    name: str = ""  # of the field in the settings class

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables of the flag and of its aliases, in this order."""
        return tuple(flag.lstrip("-").replace("-", "_").upper() for flag in (self.flag, *self.aliases))


def option(parse: Callable[[str], Any], help_text: str, default: Any = None, **facts: Any) -> Any:
    """Return a dataclass field that is a flag. `facts` are further fields of `Option`."""
    return field(default=default, metadata={"option": Option(parse, help_text, default, **facts)})


def required_option(parse: Callable[[str], Any], help_text: str) -> Any:
    """Return a field that is a flag without a default: the start ends where flag and variable are missing."""
    return field(default=MISSING, metadata={"option": Option(parse, help_text, is_required=True)})


def derived_option(parse: Callable[[str], Any], help_text: str) -> Any:
    """Return a field that is a flag. Where the flag is not given, `load_settings` works out the value."""
    return field(default=MISSING, metadata={"option": Option(parse, help_text)})


def switch(help_text: str, **facts: Any) -> Any:
    """Return a boolean field whose flag takes no value: False without the flag, True with the flag."""
    return option(boolean, help_text, False, is_switch=True, **facts)


def options_of(settings_type: Any) -> tuple[Option, ...]:
    """Return the flags among the fields of a settings class, each with its field's name, in the order of the class."""
    declared = [entry for entry in fields(settings_type) if "option" in entry.metadata]
    return tuple(replace(entry.metadata["option"], name=entry.name) for entry in declared)
