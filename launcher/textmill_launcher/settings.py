"""Settings of the launcher: built once from argv and environment, checked, never changed."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.options import OPTIONS, BadValue, Option

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")
MAX_SOCKET_PATH_BYTES = 104  # the kernel's 108 less the terminating zero and a rank of up to two digits and its dash

# A flag that the user did not give and that no variable sets stays None: its default belongs to the room that uses it.


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for. Fields of `OPTIONS`, then what only the environment says. None = unset."""

    model_id: str | None
    revision: str | None
    sharded: bool | None
    num_shard: int | None
    dtype: str | None
    device: str | None
    kv_cache_bytes: int | None
    memory_fraction: float | None
    num_threads: int | None
    native_cache_dir: str | None
    no_native_kernels: bool
    no_native_decoder: bool
    disable_swaps: str | None
    trust_remote_code: bool
    allow_pickle: bool
    huggingface_hub_cache: str | None
    conversion_cache: str
    max_concurrent_requests: int | None
    max_best_of: int | None
    max_stop_sequences: int | None
    max_top_n_tokens: int | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    max_batch_prefill_tokens: int | None
    max_batch_total_tokens: int | None
    max_n: int | None
    max_client_batch_size: int | None
    enable_prefill_logprobs: bool  # changes nothing
    response_cache_bytes: int | None
    wait_for_model_timeout: float | None  # seconds
    validation_workers: int | None
    payload_limit: int | None
    tokenizer_config_path: str | None
    v1_errors: str | None
    strict_model: bool
    tool_call_parser: str | None
    reasoning_parser: str | None
    disable_grammar_support: bool
    watermark_gamma: float | None
    watermark_delta: float | None
    hostname: str
    port: int
    cors_allow_origin: tuple[str, ...]
    api_key: str | None
    graceful_termination_timeout: float  # seconds
    json_output: bool
    shard_uds_path: str | None
    master_addr: str
    master_port: int | None
    hub_token: str | None
    log_level: str
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES, else NVIDIA_VISIBLE_DEVICES; "" counts as one device
    warnings: tuple[str, ...]  # to be logged once logging works

    def describe(self) -> dict[str, object]:
        """Return what was set, for the log; secrets are masked."""
        shown = {option.name: getattr(self, option.name) for option in OPTIONS}
        shown["hub_token"] = self.hub_token
        for secret in ("hub_token", *(option.name for option in OPTIONS if option.is_secret)):
            shown[secret] = "***" if shown[secret] else None
        return {name: value for name, value in shown.items() if value not in (None, ())}


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Build the settings: a flag wins over its variable, an empty variable counts as unset.

    Raises `SettingsError` for one bad value, `ConflictingSettings` for a bad combination. `--help`, `--version` and
    unknown flags end the process as argparse does (0, 0, 2).
    """
    given = vars(_build_parser().parse_args(list(argv)))
    warnings: list[str] = []
    values: dict[str, Any] = {}
    for option in OPTIONS:
        values[option.name] = _value_of(option, given[option.name], environ, warnings)
    if values["conversion_cache"] is None:
        base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".cache")
        values["conversion_cache"] = str(Path(base) / "textmill" / "converted")
    values["cors_allow_origin"] = values["cors_allow_origin"] or ()
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    settings = Settings(
        **values,
        hub_token=next((environ[name] for name in TOKEN_VARIABLES if environ.get(name)), None),
        log_level=_log_level(environ.get("LOG_LEVEL") or "info"),
        visible_devices=devices if devices is not None else environ.get("NVIDIA_VISIBLE_DEVICES"),
        warnings=tuple(warnings),
    )
    _check_together(settings)
    return settings


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launcher",
        description="Serve a language model over HTTP: starts one shard per device and the router.",
        epilog="Each flag can be given as an environment variable, e.g. --max-input-tokens as MAX_INPUT_TOKENS.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"textmill {version('textmill')}")
    for option in OPTIONS:
        names = [*([option.short] if option.short else []), option.flag, *option.aliases]
        shown_default = "" if option.default is None or option.is_switch else f" (default: {option.default})"
        if option.is_switch:
            switched_on = _Given(option.flag, "true")
            parser.add_argument(*names, dest=option.name, action="append_const", const=switched_on, help=option.help)
        else:
            help_text = option.help + shown_default
            parser.add_argument(*names, dest=option.name, action=_Remember, metavar=option.metavar, help=help_text)
    return parser


@dataclass(frozen=True, slots=True)
class _Given:
    """A value and where it was written: a flag or a variable."""

    where: str
    value: str


class _Remember(argparse.Action):
    """Keep each value beside the flag that brought it, so that a message can name that flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        known = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*known, _Given(option_string or self.dest, values)])


def _value_of(option: Option, flags: list[_Given] | None, environ: Mapping[str, str], warnings: list[str]) -> object:
    """Return the checked value of one option."""
    variables = [name.lstrip("-").replace("-", "_").upper() for name in (option.flag, *option.aliases)]
    platform = [_Given(name, environ[name]) for name in option.platform_variables if environ.get(name)]
    given = flags or platform or [_Given(name, environ[name]) for name in variables if environ.get(name)]
    if not given:
        return option.default
    if len({entry.where for entry in given}) > 1 and not option.is_repeatable:
        names = " and ".join(sorted({entry.where for entry in given}))
        raise ConflictingSettings(f"{names} mean the same: give one of them")
    if not flags and option.name == "hostname":
        # Shells and containers set HOSTNAME to the machine's name; that is not a wish to listen there.
        try:
            return option.parse(given[-1].value)
        except BadValue:
            warnings.append(f"HOSTNAME={given[-1].value} is not an IP address: listening on {option.default}")
            return option.default
    parsed = [_parse(option, entry) for entry in given]
    if option.is_repeatable:
        return tuple(item for entry in parsed for item in entry)  # type: ignore[attr-defined]
    return parsed[-1]


def _parse(option: Option, given: _Given) -> object:
    shown = "***" if option.is_secret else repr(given.value)
    if not given.value.strip():
        raise SettingsError(f"{given.where} is {shown}, wanted {option.help}")
    try:
        return option.parse(given.value)
    except BadValue as error:
        raise SettingsError(f"{given.where} is {shown}, wanted {error}") from None


def _log_level(value: str) -> str:
    """Return the level of LOG_LEVEL; of a filter such as `info,router=debug` the part that has no target counts."""
    names = {
        "trace": "DEBUG",
        "debug": "DEBUG",
        "info": "INFO",
        "warn": "WARNING",
        "warning": "WARNING",
        "error": "ERROR",
    }
    general = [part.strip().lower() for part in value.split(",") if "=" not in part]
    if not general:
        return "INFO"
    if general[-1] not in names:
        raise SettingsError(f"LOG_LEVEL is {value!r}, wanted one of {', '.join(names)}")
    return names[general[-1]]


def _check_together(settings: Settings) -> None:
    """Raise `ConflictingSettings` for values that cannot hold at once."""
    most_input, most_total = settings.max_input_tokens, settings.max_total_tokens
    if most_input is not None and most_total is not None and most_input >= most_total:
        raise ConflictingSettings(
            f"--max-input-tokens is {most_input} and --max-total-tokens is {most_total}: "
            "the first must be smaller, a request needs room for at least one output token"
        )
    pool = settings.max_batch_total_tokens
    if most_total is not None and pool is not None and most_total > pool:
        raise ConflictingSettings(
            f"--max-total-tokens is {most_total} and --max-batch-total-tokens is {pool}: "
            "the first must not be larger, or the largest request never fits"
        )
    prefix = settings.shard_uds_path
    if prefix is not None and len(prefix.encode()) > MAX_SOCKET_PATH_BYTES:
        raise SettingsError(
            f"--shard-uds-path has {len(prefix.encode())} bytes, wanted at most {MAX_SOCKET_PATH_BYTES}: "
            "the kernel limits the length of a socket's path"
        )
