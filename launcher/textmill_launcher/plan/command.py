"""The command `launcher plan`."""

import json
import logging
import os
import re
import sys
from collections.abc import Sequence

from textmill_launcher.devices import count_driver_devices, num_ranks
from textmill_launcher.errors import SettingsError
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.options import BadValue, integer
from textmill_launcher.plan.report import as_json, as_text, make_plan
from textmill_launcher.plan.source import find_facts
from textmill_launcher.settings import OPTIONS, Start, read_start, serve_parser

DESCRIPTION = (
    "Say what a model takes of memory and what fits, from its config and the headers of its weights alone: no weights, "
    "no device. Takes all flags of the server. What does not fit is reduced in this order: the context to 2048 tokens, "
    "the requests at once, the tokens of a step, the context again."
)
# The options of a server that `suggested_flags` decides.
_PLANNED = frozenset(
    {
        *("model_id", "device", "dtype", "num_shard", "num_nodes", "max_total_tokens"),
        *("max_step_tokens", "max_batch_prefill_tokens", "num_slots"),
    }
)
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4} | {
    f"{letter}I": 1024**power for power, letter in enumerate("KMGT", 1)
}


def run(argv: Sequence[str]) -> int:
    """Print the plan. Returns 0, or the code of memory that runs out where nothing fits. Raises `LaunchError`."""
    parser = serve_parser("launcher plan", DESCRIPTION)
    parser.add_argument("--concurrency", metavar="N", help="requests of --max-total-tokens at once (default: 1)")
    parser.add_argument("--device-memory", metavar="BYTES", help="memory of the device that is not here, e.g. 80GiB")
    parser.add_argument("--json", action="store_true", help="show the plan as JSON")
    start = read_start(parser, argv, os.environ)
    logging.getLogger("textmill_launcher").addHandler(logging.NullHandler())
    concurrency, memory = start.flags["concurrency"], start.flags["device_memory"]
    settings = start.settings
    plan = make_plan(
        settings,
        find_facts(settings),
        num_shard=num_ranks(settings, count_driver_devices),
        concurrency=1 if concurrency is None else _count(str(concurrency)),
        device_memory=None if memory is None else parse_bytes(str(memory)),
        given=given_words(start),
    )
    if start.flags["json"]:
        print(json.dumps(as_json(plan)))
    else:
        sys.stdout.write(as_text(plan))
    return ExitCode.FINE if plan.fit.fits else ExitCode.OUT_OF_MEMORY


def given_words(start: Start) -> list[str]:
    """Return the flags of a command line that the start of a server needs too, and that the plan itself does not set.

    What came from a variable or from a file is not among them, but for the file's own flag. Secrets are masked.
    """
    words = ["--config", str(start.flags["config"])] if start.flags["config"] else []
    for option in OPTIONS:
        entries = start.flags.get(option.name)
        if option.name in _PLANNED or not isinstance(entries, list):
            continue
        for entry in entries:
            words += [option.flag] if option.is_switch else [option.flag, "***" if option.is_secret else entry.value]
    return words


def _count(value: str) -> int:
    try:
        return int(str(integer(1)(value)))
    except BadValue as error:
        raise SettingsError(f"--concurrency is {value!r}, wanted {error}") from None


def parse_bytes(value: str) -> int:
    """Return the bytes of `80GiB`, `80G` or a plain number. Raises `SettingsError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", value.strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise SettingsError(f"--device-memory is {value!r}, wanted bytes such as 80GiB, 24G or 85899345920")
    return int(float(match[1]) * _UNITS[match[2]])
