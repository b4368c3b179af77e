"""Settings of the shard: built once from argv and environment, checked, never changed.

Every flag has an environment variable: its name in upper snake case (`--kv-cache-bytes`: KV_CACHE_BYTES). The flag
wins; an empty variable counts as unset.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textmill_shard.options import CONVERT_OPTIONS, DEFAULT_STEP_TOKENS, SERVE_OPTIONS, BadValue, Option

LOG_LEVELS = ("trace", "debug", "info", "warning", "warn", "error")


class SettingsError(Exception):
    """Names the setting, the value and what would be accepted."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What one rank serves, and how."""

    model_dir: Path
    model_id: str
    model_sha: str
    uds_path: Path
    rank: int
    world_size: int
    master_addr: str
    master_port: int | None  # needed with more than one rank
    dtype: str
    device: str  # "auto", "cpu", "cuda", "cuda:N": see device.py
    kv_cache_bytes: int | None  # None = memory_fraction decides
    memory_fraction: float | None  # None = by device, see model/memory.py
    max_kv_tokens: int | None  # None = as many as fit
    block_size: int
    num_slots: int
    max_step_tokens: int | None  # None: see step_tokens
    num_threads: int
    native_cache_dir: Path
    no_native_kernels: bool
    no_native_decoder: bool
    disable_swaps: tuple[str, ...]
    trust_remote_code: bool
    allow_pickle: bool
    watermark_gamma: float
    watermark_delta: float
    router_lease_s: float
    json_output: bool
    log_level: str

    def step_tokens(self, *, has_encoder: bool) -> int:
        """Tokens of the largest step. A text for an encoder goes in one whole, beside a token of each other slot."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return DEFAULT_STEP_TOKENS + (self.num_slots if has_encoder else 0)

    def describe(self) -> dict[str, object]:
        """What the log shows; there are no secrets."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", ())}


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """Which GGUF file becomes a model folder, and where."""

    gguf: Path
    cache_dir: Path
    dtype: str
    json_output: bool
    log_level: str


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> ServeSettings | ConvertSettings:
    """Raises SettingsError for a bad value. `--help` and unknown flags end the process as argparse does (0 and 2)."""
    given = vars(_build_parser().parse_args(list(argv)))
    is_serve = given["command"] == "serve"
    options = SERVE_OPTIONS if is_serve else CONVERT_OPTIONS
    values = {option.name: _value_of(option, given[option.name], environ) for option in options}
    values["log_level"] = _log_level(environ.get("LOG_LEVEL") or "info")
    if not is_serve:
        return ConvertSettings(**values)
    values["model_id"] = values["model_id"] or values["model_dir"].name
    if values["num_threads"] is None:
        values["num_threads"] = default_num_threads(len(os.sched_getaffinity(0)), values["world_size"])
    values["native_cache_dir"] = values["native_cache_dir"] or _user_cache_dir(environ) / "textmill" / "native"
    settings = ServeSettings(**values)
    _check_together(settings)
    return settings


def default_num_threads(num_cores: int, world_size: int) -> int:
    """Threads of one rank's steps. From 3 cores on one is left to the router; of 2, half would be too dear for that:
    the router needs a few hundredths of a core per stream, and waiting threads give way to it.
    """
    return max(1, (num_cores - 1 if num_cores > 2 else num_cores) // world_size)


def _user_cache_dir(environ: Mapping[str, str]) -> Path:
    given = environ.get("XDG_CACHE_HOME", "")
    return Path(given) if given.startswith("/") else Path.home() / ".cache"


def _check_together(settings: ServeSettings) -> None:
    if settings.rank >= settings.world_size:
        raise SettingsError(f"--rank is {settings.rank}, with --world-size {settings.world_size} it is below that")
    if settings.world_size > 1 and settings.master_port is None:
        raise SettingsError("--master-port is missing: with more than one rank they must meet somewhere")
    num_step_tokens = settings.step_tokens(has_encoder=False)
    if settings.num_slots > num_step_tokens:
        raise SettingsError(
            f"--num-slots is {settings.num_slots}, --max-step-tokens {num_step_tokens}: "
            "every slot must be able to decode in one step, so slots <= tokens per step"
        )


def _value_of(option: Option, given: str | bool | None, environ: Mapping[str, str]) -> Any:
    """The flag, else the variable, else the default."""
    if given not in (None, False):
        where, value = option.flag, "true" if given is True else str(given)
    else:
        where = next((name for name in option.variables if environ.get(name)), option.variables[0])
        value = environ.get(where, "")
    if not value:
        if option.is_required:
            raise SettingsError(f"{option.flag} is missing (or the variable {option.variables[0]})")
        return option.default
    try:
        return option.parse(value)
    except BadValue as wanted:
        raise SettingsError(f"{where} is {value!r}, wanted {wanted}") from None


def _log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise SettingsError(f"LOG_LEVEL is {value!r}, wanted one of {', '.join(LOG_LEVELS)}")
    return {"trace": "DEBUG", "warn": "WARNING"}.get(value.lower(), value.upper())


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="textmill-shard", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, options, text in (
        ("serve", SERVE_OPTIONS, "Serve one rank of a model over gRPC on a Unix socket."),
        ("convert", CONVERT_OPTIONS, "Convert a GGUF file; the last line of stdout is the folder."),
    ):
        epilog = "Each flag can be given as an environment variable, e.g. --block-size as BLOCK_SIZE."
        sub_parser = commands.add_parser(command, help=text, description=text, epilog=epilog, allow_abbrev=False)
        for option in options:
            flags = (option.flag, *option.aliases)
            if option.is_switch:
                sub_parser.add_argument(*flags, dest=option.name, action="store_true", help=option.help)
            else:
                shown = "" if option.default in (None, "", ()) else f" (default: {option.default})"
                metavar = option.name.upper()
                sub_parser.add_argument(*flags, dest=option.name, metavar=metavar, help=option.help + shown)
    return parser
