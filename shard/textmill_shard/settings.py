"""Settings of the shard: built once from argv and environment, checked, never changed.

Every flag has an environment variable: its name in upper snake case (`--kv-cache-bytes`: KV_CACHE_BYTES). The flag
wins; an empty variable counts as unset.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textmill_shard.cores import usable_cores
from textmill_shard.options import (
    ATTENTION_BACKENDS,
    DEFAULT_STEP_TOKENS,
    DEVICE_SWAPS,
    DTYPES,
    KV_CACHE_DTYPES,
    MAX_LORA_RANK,
    POOLINGS,
    SWAPS,
    TASKS,
    WRITING_TASKS,
    BadValue,
    Option,
    address,
    batch_sizes,
    bytes_or_auto,
    choice,
    derived_option,
    device_name,
    finite,
    fraction,
    integer,
    option,
    options_of,
    required_option,
    seconds,
    share,
    switch,
    text,
    words,
)

LOG_LEVELS = ("trace", "debug", "info", "warning", "warn", "error")


class SettingsError(Exception):
    """A setting is missing or bad. The message has its name, the given value and the accepted values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Which model one rank serves, and how. Each field with an option is a flag and an environment variable.

    None means that the shard decides later: `step_tokens` here, `device.py`, or `model/memory.py`.
    """

    model_dir: Path = required_option(Path, "folder with config.json and safetensors files")
    model_id: str = derived_option(text, "name that clients see (default: the folder's)")
    model_sha: str = option(text, "revision hash of the checkpoint", "")
    uds_path: Path = required_option(Path, "Unix socket to serve on, created with mode 0600")
    shard_address: str | None = option(
        address, "TCP address, host:port, where rank 0 serves too; needs --shard-tls-cert, -key and -ca"
    )
    shard_tls_cert: str | None = option(text, "PEM file of the certificate chain that the shard shows on TCP")
    shard_tls_key: str | None = option(text, "PEM file of that certificate's key")
    shard_tls_ca: str | None = option(text, "PEM file of the authorities that sign the certificates of routers")
    task: str = option(
        choice(*TASKS), "what the model is for; all but the writing tasks are computed as rows", "text-generation"
    )
    pooling: str = option(choice(*POOLINGS), "how the vectors of tokens become the vector of a text", "auto")
    max_batch_tokens: int | None = option(
        integer(1), "most tokens of one batch of rows (default: 2048 on a CPU, 16384 on a GPU)"
    )
    max_image_pixels: int = option(integer(1), "most pixels of an image, told before it is decoded", 50_000_000)
    max_audio_seconds: float = option(seconds, "most seconds of audio, counted while it is decoded", 600.0)
    rank: int = option(integer(0), "index of this shard", 0)
    world_size: int = option(integer(1), "number of shards", 1)
    local_rank: int = derived_option(integer(0), "index of this shard among those of its machine (default: --rank)")
    local_world_size: int = derived_option(integer(1), "number of shards on this machine (default: --world-size)")
    replica: int = option(integer(0), "number of this copy of the model among those of this machine", 0)
    num_replicas: int = option(integer(1), "copies of the model that share this machine", 1)
    master_addr: str = option(text, "address where the ranks meet", "127.0.0.1")
    master_port: int | None = option(integer(1), "port where the ranks meet, needed with more than one")
    dtype: str = option(choice(*DTYPES), "type of the weights (auto: rows on a CPU in float32)", "auto")
    kv_cache_dtype: str = option(
        choice(*KV_CACHE_DTYPES),
        "type of keys and values (auto: that of the weights); fp8_e4m3fn takes half of the memory and needs compute "
        "capability 8.9, fp8_e5m2 is less exact",
        "auto",
    )
    device: str = option(
        device_name,
        "auto, cpu, cuda or cuda:N; cuda is the GPU of this shard's number, auto that when torch sees a GPU, else cpu",
        "auto",
    )
    kv_cache_bytes: int | None = option(
        integer(1), "bytes of the KV pool of this rank (default: --memory-fraction decides)"
    )
    memory_fraction: float | None = option(
        fraction, "share of memory to fill (default: 0.4 of a CPU's RAM, 0.8 of a GPU's memory)"
    )
    max_kv_tokens: int | None = option(integer(1), "most tokens in the KV pool, however much memory there is")
    lora_memory_bytes: int | None = option(
        bytes_or_auto,
        "bytes that this rank sets aside for LoRA adapters before the KV pool is sized; auto is 5 % of the bytes for "
        "the KV pool, 0 means that no adapter is loaded",
        0,
    )
    max_lora_rank: int = option(integer(1, MAX_LORA_RANK), "largest rank of a LoRA adapter that is loaded", 64)
    media_cache_bytes: int | None = option(
        integer(1),
        "bytes that a model with images sets aside for images before the KV pool is sized; a request may need half of "
        "them (default: 256 MiB on a CPU, 1 GiB on a GPU)",
    )
    block_size: int = option(integer(1), "tokens per KV block", 16)
    num_slots: int = option(integer(1), "requests that can run at once", 64)
    max_step_tokens: int | None = option(
        integer(1),
        f"most tokens of one step (default: {DEFAULT_STEP_TOKENS}, with an encoder as many more as there are slots)",
    )
    num_threads: int = derived_option(
        integer(1), "threads of a step (default: the cores, from 3 on less one for the router)"
    )
    native_cache_dir: Path = derived_option(
        Path, "where compiled CPU kernels are kept (default: ~/.cache/textmill/native)"
    )
    attention_backend: str | None = option(
        choice(*ATTENTION_BACKENDS),
        "how attention is computed (default: on a GPU triton where it can be imported, on a CPU native kernels); flash "
        "needs an installed FlashAttention, reference is plain torch, for bisection",
    )
    no_native_kernels: bool = switch("compute by torch alone, for bisection")
    no_native_decoder: bool = switch("llama-type models by transformers' code", aliases=("--no-fast-decoder",))
    disable_swaps: tuple[str, ...] = option(
        words(*SWAPS, *DEVICE_SWAPS),
        "layers of transformers' code that stay as they are, for bisection; from "
        f"{','.join(SWAPS)}, and on a GPU {','.join(DEVICE_SWAPS)}",
        (),
    )
    cuda_graphs: tuple[int, ...] | None = option(
        batch_sizes,
        "on a GPU, numbers of requests whose decode steps are recorded as CUDA graphs, with commas; 0: none (default: "
        "up to --num-slots)",
    )
    no_graphs: bool = switch("on a GPU, record no CUDA graphs, for bisection")
    no_overlap: bool = switch(
        "on a GPU, launch no step before the tokens of the step before are read, for bisection; a CPU never overlaps"
    )
    trust_remote_code: bool = switch(
        "run the modelling code that the model's folder holds, with all the rights of this process"
    )
    allow_pickle: bool = switch(
        "read *.bin where there are no safetensors; files that ask for more than tensors are refused"
    )
    text_only: bool = switch("leave out the tower of a model that takes images, and serve texts alone")
    watermark_gamma: float = option(share, "part of the vocabulary that is green for the watermark", 0.5)
    watermark_delta: float = option(finite, "what the watermark adds to the logits of green tokens", 2.0)
    router_lease_s: float = option(seconds, "seconds of silence after which the router counts as gone", 5.0)
    json_output: bool = switch("log one JSON object a line")
    log_level: str  # from the variable LOG_LEVEL; there is no flag

    @property
    def computes_rows(self) -> bool:
        """Whether the task needs no generation."""
        return self.task not in WRITING_TASKS

    def step_tokens(self, *, has_encoder: bool) -> int:
        """Return the tokens of the largest step. An encoder's text fits whole, beside a token of each other slot."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return DEFAULT_STEP_TOKENS + (self.num_slots if has_encoder else 0)

    def describe(self) -> dict[str, object]:
        """Return the settings that are not empty, for the log. None of them is a secret."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """Which GGUF file becomes a model folder, and in which cache the folder lies."""

    gguf: Path = required_option(Path, "GGUF file to convert")
    cache_dir: Path = required_option(Path, "where converted folders are kept")
    dtype: str = option(choice(*DTYPES[1:]), "type in which weights are stored", "bfloat16")
    json_output: bool = switch("log one JSON object a line")
    log_level: str  # from the variable LOG_LEVEL; there is no flag


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """Which model folder gets a tokenizer.json, and in which cache the folder with the file lies."""

    model_dir: Path = required_option(Path, "folder with the vocabulary of a model")
    cache_dir: Path = required_option(Path, "where converted folders are kept")
    trust_remote_code: bool = switch("let the model's own Python code make the tokenizer")
    json_output: bool = switch("log one JSON object a line")
    log_level: str  # from the variable LOG_LEVEL; there is no flag


SERVE_OPTIONS = options_of(ServeSettings)
CONVERT_OPTIONS = options_of(ConvertSettings)
TOKENIZER_OPTIONS = options_of(TokenizerSettings)

ShardSettings = ServeSettings | ConvertSettings | TokenizerSettings


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> ShardSettings:
    """Build the settings of the command that argv names. Raises SettingsError for a bad value.

    `--help` and unknown flags end the process as argparse does (0 and 2).
    """
    given = vars(_build_parser().parse_args(list(argv)))
    command = given["command"]
    options = {"serve": SERVE_OPTIONS, "convert": CONVERT_OPTIONS, "tokenizer": TOKENIZER_OPTIONS}[command]
    values = {entry.name: _value_of(entry, given[entry.name], environ) for entry in options}
    values["log_level"] = _log_level(environ.get("LOG_LEVEL") or "info")
    if command == "convert":
        return ConvertSettings(**values)
    if command == "tokenizer":
        return TokenizerSettings(**values)
    values["model_id"] = values["model_id"] or values["model_dir"].name
    if values["local_rank"] is None:
        values["local_rank"] = values["rank"]
    values["local_world_size"] = values["local_world_size"] or values["world_size"]
    if values["num_threads"] is None:
        num_shards = values["local_world_size"] * values["num_replicas"]
        values["num_threads"] = default_num_threads(usable_cores(), num_shards)
    values["native_cache_dir"] = values["native_cache_dir"] or _user_cache_dir(environ) / "textmill" / "native"
    settings = ServeSettings(**values)
    _check_together(settings)
    return settings


def default_num_threads(num_cores: int, num_shards: int) -> int:
    """Return the number of threads of one rank's steps, at least 1, where so many ranks share the cores.

    With three or more cores, one core is left to the router. With two cores, none is left, because half of the cores is
    too much for a router that needs a few hundredths of a core per stream; waiting threads give way to the router.
    """
    return max(1, (num_cores - 1 if num_cores > 2 else num_cores) // num_shards)


def _user_cache_dir(environ: Mapping[str, str]) -> Path:
    given = environ.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise SettingsError(
            "HOME is not set and this user has no entry in the password file, so there is no folder for compiled "
            "kernels: set HOME or XDG_CACHE_HOME, or give --native-cache-dir"
        ) from None


def _check_together(settings: ServeSettings) -> None:
    _check_tcp(settings)
    if settings.rank >= settings.world_size:
        raise SettingsError(f"--rank is {settings.rank}, with --world-size {settings.world_size} it is below that")
    if settings.computes_rows and settings.world_size > 1:
        raise SettingsError(
            f"--world-size is {settings.world_size}, with --task {settings.task} it is 1: give each GPU a copy of the "
            "model instead (--num-replicas of the launcher)"
        )
    if settings.computes_rows and settings.kv_cache_dtype != "auto":
        raise SettingsError(
            f"--kv-cache-dtype is {settings.kv_cache_dtype}, and --task {settings.task} keeps no keys and values: "
            "leave the flag out"
        )
    if settings.local_rank >= settings.local_world_size:
        raise SettingsError(
            f"--local-rank is {settings.local_rank}, with --local-world-size {settings.local_world_size} "
            "it is below that"
        )
    if settings.local_world_size > settings.world_size:
        raise SettingsError(
            f"--local-world-size is {settings.local_world_size}, wanted at most --world-size {settings.world_size}"
        )
    if settings.replica >= settings.num_replicas:
        raise SettingsError(
            f"--replica is {settings.replica}, with --num-replicas {settings.num_replicas} it is below that"
        )
    if settings.world_size > 1 and settings.master_port is None:
        raise SettingsError("--master-port is missing: with more than one rank they must meet somewhere")
    num_step_tokens = settings.step_tokens(has_encoder=False)
    if settings.num_slots > num_step_tokens:
        raise SettingsError(
            f"--num-slots is {settings.num_slots}, --max-step-tokens {num_step_tokens}: "
            "every slot must be able to decode in one step, so slots <= tokens per step"
        )


def _check_tcp(settings: ServeSettings) -> None:
    tls = {
        "--shard-tls-cert": settings.shard_tls_cert,
        "--shard-tls-key": settings.shard_tls_key,
        "--shard-tls-ca": settings.shard_tls_ca,
    }
    missing = [flag for flag, file in tls.items() if file is None]
    if settings.shard_address is None:
        if len(missing) < len(tls):
            raise SettingsError("--shard-tls-cert, --shard-tls-key and --shard-tls-ca need --shard-address")
        return
    if missing:
        raise SettingsError(
            f"--shard-address needs {', '.join(missing)}: over TCP router and shard show each other certificates"
        )
    if settings.rank:
        raise SettingsError(f"--shard-address is for rank 0, which has the stream; this is rank {settings.rank}")


def _value_of(entry: Option, given: str | bool | None, environ: Mapping[str, str]) -> Any:
    """Return the checked value of a flag, else of its variable, else the default."""
    if given not in (None, False):
        where, value = entry.flag, "true" if given is True else str(given)
    else:
        where = next((name for name in entry.variables if environ.get(name)), entry.variables[0])
        value = environ.get(where, "")
    if not value:
        if entry.is_required:
            raise SettingsError(f"{entry.flag} is missing (or the variable {entry.variables[0]})")
        return entry.default
    try:
        return entry.parse(value)
    except BadValue as wanted:
        raise SettingsError(f"{where} is {value!r}, wanted {wanted}") from None


def _log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise SettingsError(f"LOG_LEVEL is {value!r}, wanted one of {', '.join(LOG_LEVELS)}")
    return {"trace": "DEBUG", "warn": "WARNING"}.get(value.lower(), value.upper())


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="textmill-shard", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, options, purpose in (
        ("serve", SERVE_OPTIONS, "Serve one rank of a model over gRPC on a Unix socket."),
        ("convert", CONVERT_OPTIONS, "Convert a GGUF file; the last line of stdout is the folder."),
        ("tokenizer", TOKENIZER_OPTIONS, "Make a tokenizer.json; the last line of stdout is the folder with it."),
    ):
        epilog = "Each flag can be given as an environment variable, e.g. --block-size as BLOCK_SIZE."
        sub_parser = commands.add_parser(command, help=purpose, description=purpose, epilog=epilog, allow_abbrev=False)
        for entry in options:
            flags = (entry.flag, *entry.aliases)
            if entry.is_switch:
                sub_parser.add_argument(*flags, dest=entry.name, action="store_true", help=entry.help)
            else:
                shown = "" if entry.default in (None, "", ()) else f" (default: {entry.default})"
                metavar = entry.name.upper()
                sub_parser.add_argument(*flags, dest=entry.name, metavar=metavar, help=entry.help + shown)
    return parser
