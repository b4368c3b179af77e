"""The flags of the shard as tables: name, accepted values, default. Each has an environment variable of its name."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_STEP_TOKENS = 1024
SWAPS = ("qkv", "gate_up", "packed_linear", "rms_norm")  # see layers/module_swaps.py


class BadValue(ValueError):
    """`str()` is what would have been accepted."""


@dataclass(frozen=True, slots=True)
class Option:
    flag: str
    parse: Callable[[str], Any]
    help: str
    default: Any = None
    is_required: bool = False
    is_switch: bool = False
    aliases: tuple[str, ...] = ()  # further flags of the same meaning, each with its own environment variable

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables of the flag and of its aliases, in this order."""
        return tuple(flag.lstrip("-").replace("-", "_").upper() for flag in (self.flag, *self.aliases))


def text(value: str) -> str:
    return value


def integer(low: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise BadValue(f"a whole number >= {low}") from None
        if number < low:
            raise BadValue(f"a whole number >= {low}")
        return number

    return parse


def _number(value: str, *, low: float, high: float, wanted: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low < number <= high:
        raise BadValue(wanted)
    return number


def fraction(value: str) -> float:
    return _number(value, low=0.0, high=1.0, wanted="a number above 0 and at most 1")


def share(value: str) -> float:
    wanted = "a number above 0 and below 1"
    number = _number(value, low=0.0, high=1.0, wanted=wanted)
    if number == 1.0:
        raise BadValue(wanted)
    return number


def finite(value: str) -> float:
    return _number(value, low=-100.000001, high=100.0, wanted="a number from -100 to 100")


def seconds(value: str) -> float:
    return _number(value, low=0.0, high=86_400.0, wanted="seconds, above 0 and at most a day")


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise BadValue("one of " + ", ".join(allowed))
        return value

    return parse


def device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise BadValue("auto, cpu, cuda or cuda:N")
    return value


def words(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        given = tuple(part.strip() for part in value.split(",") if part.strip())
        if not set(given) <= set(allowed):
            raise BadValue("a comma-separated list of " + ", ".join(allowed))
        return given

    return parse


def boolean(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if value.lower() not in known:
        raise BadValue("true or false")
    return known[value.lower()]


_JSON_OUTPUT = Option("--json-output", boolean, "log one JSON object a line", default=False, is_switch=True)

SERVE_OPTIONS = (
    Option("--model-dir", Path, "folder with config.json and safetensors files", is_required=True),
    Option("--model-id", text, "name that clients see (default: the folder's)", default=""),
    Option("--model-sha", text, "revision hash of the checkpoint", default=""),
    Option("--uds-path", Path, "Unix socket to serve on, created with mode 0600", is_required=True),
    Option("--rank", integer(0), "index of this shard", default=0),
    Option("--world-size", integer(1), "number of shards", default=1),
    Option("--master-addr", text, "address where the ranks meet", default="127.0.0.1"),
    Option("--master-port", integer(1), "port where the ranks meet, needed with more than one"),
    Option("--dtype", choice(*DTYPES), "type of weights and KV", default="auto"),
    Option(
        "--device",
        device,
        "auto, cpu, cuda or cuda:N; cuda is the GPU of the rank's number, auto that when torch sees a GPU, else cpu",
        default="auto",
    ),
    Option("--kv-cache-bytes", integer(1), "bytes of the KV pool of this rank (default: --memory-fraction decides)"),
    Option(
        "--memory-fraction", fraction, "share of memory to fill (default: 0.4 of a CPU's RAM, 0.8 of a GPU's memory)"
    ),
    Option("--max-kv-tokens", integer(1), "most tokens in the KV pool, however much memory there is"),
    Option("--block-size", integer(1), "tokens per KV block", default=16),
    Option("--num-slots", integer(1), "requests that can run at once", default=64),
    Option(
        "--max-step-tokens",
        integer(1),
        f"most tokens of one step (default: {DEFAULT_STEP_TOKENS}, with an encoder as many more as there are slots)",
    ),
    Option("--num-threads", integer(1), "threads of a step (default: the cores, from 3 on less one for the router)"),
    Option("--native-cache-dir", Path, "where compiled CPU kernels are kept (default: ~/.cache/textmill/native)"),
    Option("--no-native-kernels", boolean, "compute by torch alone, for bisection", default=False, is_switch=True),
    Option(
        "--no-native-decoder",
        boolean,
        "llama-type models by transformers' code",
        default=False,
        is_switch=True,
        aliases=("--no-fast-decoder",),
    ),
    Option(
        "--disable-swaps",
        words(*SWAPS),
        f"layers of transformers' code that stay as they are, for bisection; from {','.join(SWAPS)}",
        default=(),
    ),
    Option(
        "--trust-remote-code",
        boolean,
        "run the modelling code that the model's folder holds, with all the rights of this process",
        default=False,
        is_switch=True,
    ),
    Option(
        "--allow-pickle",
        boolean,
        "read *.bin where there are no safetensors; files that ask for more than tensors are refused",
        default=False,
        is_switch=True,
    ),
    Option("--watermark-gamma", share, "part of the vocabulary that is green for the watermark", default=0.5),
    Option("--watermark-delta", finite, "what the watermark adds to the logits of green tokens", default=2.0),
    Option("--router-lease-s", seconds, "seconds of silence after which the router counts as gone", default=5.0),
    _JSON_OUTPUT,
)
CONVERT_OPTIONS = (
    Option("--gguf", Path, "GGUF file to convert", is_required=True),
    Option("--cache-dir", Path, "where converted folders are kept", is_required=True),
    Option("--dtype", choice(*DTYPES[1:]), "type in which weights are stored", default="bfloat16"),
    _JSON_OUTPUT,
)
