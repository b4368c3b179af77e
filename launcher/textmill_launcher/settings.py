"""The settings of the launcher, which are built once from argv and environment, checked, and never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.option_reader import read_options
from textmill_launcher.options import (
    DEVICES,
    DTYPES,
    REASONING_FORMATS,
    TOOL_FORMATS,
    V1_ERRORS,
    Child,
    Choice,
    Option,
    boolean,
    derived_option,
    fraction,
    integer,
    ip_address,
    logit,
    open_share,
    option,
    options_of,
    seconds,
    switch,
    text,
    word_list,
)

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")
MAX_SOCKET_PATH_BYTES = 104  # the kernel's 108 less the terminating zero and a rank of up to two digits and its dash

ROUTER, SHARD = Child.ROUTER, Child.SHARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field with an option is a flag (`--max-best-of`) and an environment variable (`MAX_BEST_OF`); the flag wins.

    None means that the user gave neither. The default then belongs to the room that uses the value, and the launcher
    hands nothing on.
    """

    # Model
    model_id: str | None = option(text, "hub id, local folder or GGUF file; without it the demo model is served")
    revision: str | None = option(text, "commit, branch or tag of the hub model")
    sharded: bool | None = option(boolean, "true: one shard per visible device; false: one shard")
    num_shard: int | None = option(integer(1, 64), "number of shards, one process each")
    dtype: str | None = option(Choice(DTYPES), "type of weights and KV cache: " + ", ".join(DTYPES), to=SHARD)
    device: str | None = option(
        Choice(DEVICES), "where to compute: auto (a GPU when there is one), cpu, cuda", to=SHARD
    )
    kv_cache_bytes: int | None = option(
        integer(1), "bytes of the KV cache of each shard; without it a share of memory", to=SHARD
    )
    memory_fraction: float | None = option(
        fraction, "share of the memory that a shard may fill", aliases=("--cuda-memory-fraction",), to=SHARD
    )
    num_threads: int | None = option(
        integer(1), "threads of a shard's steps; without it the cores, from 3 on less one", to=SHARD
    )
    native_cache_dir: str | None = option(text, "folder of compiled CPU kernels", to=SHARD)
    no_native_kernels: bool = switch("compute by torch alone, for bisection", to=SHARD)
    no_native_decoder: bool = switch(
        "llama-type models by transformers' code", aliases=("--no-fast-decoder",), to=SHARD
    )
    trust_remote_code: bool = switch(
        "run the modelling code that the model brings, with all the rights of the shard", to=SHARD
    )
    allow_pickle: bool = switch("serve pickled weights (*.bin) where there are no safetensors", to=SHARD)
    disable_swaps: str | None = option(
        text, "comma-separated: qkv, gate_up, packed_linear, rms_norm; for bisection", to=SHARD
    )
    huggingface_hub_cache: str | None = option(text, "folder of downloaded hub models")
    conversion_cache: str = derived_option(text, "folder of models converted from GGUF")
    # Limits
    max_concurrent_requests: int | None = option(integer(1), "requests held at once; more get 429", to=ROUTER)
    max_best_of: int | None = option(integer(1), "largest best_of of a request", to=ROUTER)
    max_stop_sequences: int | None = option(integer(0), "stop strings of a request", to=ROUTER)
    max_top_n_tokens: int | None = option(integer(0), "alternatives per token that a request may ask for", to=ROUTER)
    max_input_tokens: int | None = option(
        integer(1), "prompt tokens of a request", aliases=("--max-input-length",), to=ROUTER
    )
    max_total_tokens: int | None = option(integer(2), "prompt and output tokens of a request", to=ROUTER)
    max_batch_prefill_tokens: int | None = option(integer(1), "prompt tokens computed in one step", to=ROUTER)
    max_batch_total_tokens: int | None = option(
        integer(1),
        "tokens that the KV cache holds; without it what memory allows",
        to=SHARD,
        flag_there="--max-kv-tokens",
    )
    max_n: int | None = option(integer(1), "largest n of a chat or completion", to=ROUTER)
    max_client_batch_size: int | None = option(integer(1), "prompts of one call", to=ROUTER)
    response_cache_bytes: int | None = option(
        integer(0), "bytes of answers kept for equal greedy or seeded requests; 0: none", to=ROUTER
    )
    wait_for_model_timeout: float | None = option(
        seconds, "seconds that a call with x-wait-for-model waits for the model", to=ROUTER
    )
    validation_workers: int | None = option(integer(1, 256), "threads that tokenise long prompts", to=ROUTER)
    payload_limit: int | None = option(integer(1), "bytes of a request's body", to=ROUTER)
    # OpenAI dialect
    tokenizer_config_path: str | None = option(
        text, "tokenizer_config.json whose chat template wins over the model's", to=ROUTER
    )
    v1_errors: str | None = option(Choice(V1_ERRORS), "form of errors on /v1: " + ", ".join(V1_ERRORS), to=ROUTER)
    strict_model: bool = switch("404 for names of models that are not served", to=ROUTER)
    tool_call_parser: str | None = option(
        Choice(TOOL_FORMATS), "format of tool calls: " + ", ".join(TOOL_FORMATS), to=ROUTER
    )
    reasoning_parser: str | None = option(
        Choice(REASONING_FORMATS), "format of reasoning: " + ", ".join(REASONING_FORMATS), to=ROUTER
    )
    # Sampling
    disable_grammar_support: bool = switch("refuse requests with a grammar", to=ROUTER)
    open_objects: bool = switch("let objects have keys that their schema does not name", to=ROUTER)
    watermark_gamma: float | None = option(
        open_share, "part of the vocabulary that is green for the watermark", to=SHARD
    )
    watermark_delta: float | None = option(logit, "what the watermark adds to the logits of green tokens", to=SHARD)
    # Serving
    hostname: str = option(ip_address, "address to listen on", "0.0.0.0", to=ROUTER)
    port: int = option(
        integer(1, 65535), "port to listen on", 3000, short="-p", platform_variables=("AIP_HTTP_PORT",), to=ROUTER
    )
    cors_allow_origin: tuple[str, ...] = option(
        word_list, "origin that browsers may call from; repeatable", (), is_repeatable=True, to=ROUTER
    )
    api_key: str | None = option(text, "bearer key that generate routes ask for", is_secret=True)
    graceful_termination_timeout: float = option(
        seconds, "seconds that running requests get after SIGTERM", 90.0, short="-g"
    )
    json_output: bool = switch("log lines are JSON objects", to=ROUTER | SHARD)
    # Processes
    shard_uds_path: str | None = option(text, "prefix of the shards' sockets; without it a private folder")
    master_addr: str = option(text, "address where several shards meet", "127.0.0.1")
    master_port: int | None = option(integer(1, 65535), "port where several shards meet; without it a free one")
    # Read from the environment alone
    hub_token: str | None  # value of the first of TOKEN_VARIABLES that is set
    log_level: str
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES, else NVIDIA_VISIBLE_DEVICES; "" counts as one device
    warnings: tuple[str, ...]  # to be logged once logging works

    def describe(self) -> dict[str, object]:
        """Return the settings that have a value, for the log, with secrets masked."""
        shown = {entry.name: getattr(self, entry.name) for entry in OPTIONS}
        shown["hub_token"] = self.hub_token
        for secret in ("hub_token", *(entry.name for entry in OPTIONS if entry.is_secret)):
            shown[secret] = "***" if shown[secret] else None
        return {name: value for name, value in shown.items() if value not in (None, ())}


OPTIONS = options_of(Settings)

# Flags of text-generation-inference whose values are checked and dropped, because Textmill always does what they ask.
WITHOUT_EFFECT = (
    Option(
        boolean,
        "taken for TGI's sake, without effect: prompt log-probabilities need no flag",
        False,
        is_switch=True,
        name="enable_prefill_logprobs",
    ),
)


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Build the settings. Raises `SettingsError` for one bad value, `ConflictingSettings` for a bad combination.

    `--help`, `--version` and unknown flags end the process as `read_options` says.
    """
    values, warnings = read_options((*OPTIONS, *WITHOUT_EFFECT), argv, environ)
    for entry in WITHOUT_EFFECT:
        del values[entry.name]
    if values["conversion_cache"] is None:
        values["conversion_cache"] = str(_cache_folder(environ) / "textmill" / "converted")
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    settings = Settings(
        **values,
        hub_token=next((environ[name] for name in TOKEN_VARIABLES if environ.get(name)), None),
        log_level=_log_level(environ.get("LOG_LEVEL") or "info"),
        visible_devices=devices if devices is not None else environ.get("NVIDIA_VISIBLE_DEVICES"),
        warnings=warnings,
    )
    _check_together(settings)
    return settings


def _cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder in which programs keep what they can make again; raises `SettingsError` where none is known.

    A container may run under a user id that has no entry in the password file, and without HOME.
    """
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"])
    try:
        return Path(environ.get("HOME") or "~").expanduser() / ".cache"
    except RuntimeError:
        raise SettingsError(
            "HOME is not set and this user has no entry in the password file, so there is no folder for converted "
            "models: set HOME or XDG_CACHE_HOME, or give --conversion-cache and --native-cache-dir"
        ) from None


def _log_level(value: str) -> str:
    """Return a level of `logging`. In a filter such as `info,router=debug` the last part without a target counts."""
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
