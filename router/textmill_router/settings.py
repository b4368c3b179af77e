"""Settings of the router: one frozen object from argv and environment, checked at once."""

import argparse
import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from textmill_router.parsers.formats import REASONING_NAMES, TOOL_FORMAT_NAMES

LOG_LEVELS = {
    "trace": "DEBUG",
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "warning": "WARNING",
    "error": "ERROR",
}
METRICS_ALIASES = ("vllm",)
TASK_SHAPES = ("client", "seed")
MAX_MEDIA_PAYLOAD = 60 << 20  # a message to the shard has at most 64 MiB
OTLP_PORT = 4317


class SettingsError(Exception):
    """A setting is missing or bad. The message has its name, the given value and the accepted values."""


class _BadValue(ValueError):
    """A text that an option refuses. `str()` says which values the option accepts."""


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise _BadValue(wanted) from None
        if number < low or (high is not None and number > high):
            raise _BadValue(wanted)
        return number

    return parse


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise _BadValue("a number of seconds above 0")
    return number


def _pause(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise _BadValue("a number of seconds >= 0")
    return number


def _text(value: str) -> str:
    if not value.strip():
        raise _BadValue("some text")
    return value


def _adapter(value: str) -> str:
    name, _, folder = value.partition("=")
    if not name or not folder:
        raise _BadValue("a name, an equals sign and a folder, such as poet=/adapters/poet")
    return value


def _path(value: str) -> str:
    if not re.fullmatch(r"/[\w./~:@!$&'()*+,;=%-]*", value):
        raise _BadValue("a path that begins with a slash, such as /predict")
    return value


def _root_path(value: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+", value):
        raise _BadValue("a path that begins with a slash and does not end with one, such as /llm")
    return value


def _header_name(value: str) -> str:
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]{1,100}", value.strip(), re.ASCII):
        raise _BadValue("the name of a header")
    return value.strip().lower()


def _domain(value: str) -> str:
    if not re.fullmatch(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[?[0-9a-fA-F:.]+\]?", value.strip(), re.ASCII):
        raise _BadValue("the name of a host without scheme and port, such as a.com, *.b.org or *")
    return value.strip().strip("[]").lower()


def _truth(value: str) -> bool:
    word = value.strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise _BadValue("true or false")


def _collector(value: str) -> str:
    """Return the URL, with the port of OTLP over gRPC where the URL has none."""
    match = re.fullmatch(r"(https?://(?:[\w.-]+|\[[0-9a-fA-F:.]+\]))(:\d{1,5})?/?", value.strip())
    if match is None:
        raise _BadValue("http:// or https:// with a host and a port, such as http://127.0.0.1:4317")
    return match[1] + (match[2] or f":{OTLP_PORT}")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        word = value.strip().lower()
        if word not in words:
            raise _BadValue("one of " + ", ".join(words))
        return word

    return parse


def _ip_address(value: str) -> str:
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise _BadValue("an IP address such as 127.0.0.1 or 0.0.0.0") from None


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_port = port.isascii() and port.isdecimal() and 1 <= int(port) <= 65_535
    if not host or (":" in host and not is_bracketed) or not is_port:
        raise _BadValue("a host and a port, such as 127.0.0.1:9000 or [::1]:9000")
    return value


def _log_level(value: str) -> str:
    """Return a level of `logging`. In a filter such as `info,router=debug` the last part without a target counts."""
    parts = [part.strip().lower() for part in value.split(",") if "=" not in part]
    if not parts:
        return "INFO"
    if parts[-1] not in LOG_LEVELS:
        raise _BadValue("one of " + ", ".join(LOG_LEVELS))
    return LOG_LEVELS[parts[-1]]


def _option(
    parse: Callable[[str], Any],
    text: str,
    default: Any = MISSING,
    *,
    kind: str = "value",
    variables: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field that is a flag.

    `parse` reads the flag's text, and `--help` shows `text`. `kind` is value, list, switch or secrets. The variable of
    a list holds its values between commas, and the variable of secrets holds one on each line. `variables` are
    further variables of the flag, which other programs read too; they win over the flag's own.
    """
    return field(default=default, metadata={"parse": parse, "help": text, "kind": kind, "variables": variables})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is a flag (`--max-best-of`) and an environment variable (`MAX_BEST_OF`); the flag wins."""

    model_dir: str = _option(_text, "folder with config.json, tokenizer.json and the like")
    model_id: str = _option(_text, "name under which the model is served")
    task: str | None = _option(_text, "task of the model; without it the shard's kind of generation", None)
    served_model_name: tuple[str, ...] = _option(
        _text, "name that clients use instead of model-id; repeatable, answers have the first", (), kind="list"
    )
    lora_adapter: tuple[str, ...] = _option(
        _adapter, "adapter that is loaded at the start, as NAME=FOLDER; repeatable", (), kind="list"
    )
    lora_runtime_updates: bool = _option(
        _truth, "let callers load and unload adapters; needs keys, or a loopback address", False, kind="switch"
    )
    lora_dir: str | None = _option(_text, "folder below which callers may load adapters from", None)
    lora_hub_folder: tuple[str, ...] = _option(
        _adapter, "adapter of the hub that callers may load, as OWNER/NAME=FOLDER; repeatable", (), kind="list"
    )
    lora_state_file: str | None = _option(
        _text, "file with the names of adapters, which a router leaves for the one that starts after it", None
    )
    model_sha: str | None = _option(_text, "revision hash of the model, shown in /info", None)
    shard_uds_path: tuple[str, ...] = _option(
        _text, "Unix socket of the shard with rank 0; repeated, one for each replica", (), kind="list"
    )
    shard_address: tuple[str, ...] = _option(
        _address, "TCP address, host:port, of the shard with rank 0, instead of its socket; repeated", (), kind="list"
    )
    shard_tls_cert: str | None = _option(_text, "PEM file of the certificate chain shown to shards on TCP", None)
    shard_tls_key: str | None = _option(_text, "PEM file of that certificate's key", None)
    shard_tls_ca: str | None = _option(_text, "PEM file of the authorities that sign the shards' certificates", None)
    launcher_notes: bool = _option(
        _truth, "read the launcher's notes from standard input, and end when they end", False, kind="switch"
    )

    max_concurrent_requests: int = _option(_integer(1), "sequences in work or waiting; more get 429", 128)
    max_best_of: int = _option(_integer(1), "largest best_of of a request", 2)
    max_stop_sequences: int = _option(_integer(0), "stop strings of a request", 4)
    max_top_n_tokens: int = _option(_integer(0), "alternatives per token that a request may ask for", 5)
    max_input_tokens: int | None = _option(_integer(1), "prompt tokens; without it max-total-tokens - 1", None)
    max_total_tokens: int | None = _option(
        _integer(2), "prompt and output tokens together; without it what model and KV cache allow", None
    )
    max_batch_prefill_tokens: int | None = _option(
        _integer(1), "prompt tokens computed in one step; without it the shard's largest step, at most 4096", None
    )
    max_client_batch_size: int = _option(_integer(1), "prompts of one call, shown in /info", 4)
    max_queued_requests: int = _option(_integer(1), "requests that wait for a slot; more get 429", 4096)
    max_queued_tokens: int = _option(_integer(1), "prompt tokens of all waiting requests; more get 429", 8_000_000)
    max_queue_seconds: float | None = _option(
        _seconds, "predicted seconds of waiting; more get 429; without it the wait is not bounded", None
    )
    max_queued_rows: int = _option(
        _integer(1), "rows in work or waiting of a task without generation; more get 429", 4096
    )
    max_queued_file_bytes: int = _option(
        _integer(1),
        "bytes of bodies with files, in work or waiting, of a task of images or audio; more get 429",
        512 << 20,
    )
    batch_window_ms: int = _option(
        _integer(0, 1000), "milliseconds that rows of a task wait for more rows while no batch runs", 0
    )
    max_task_rows: int | None = _option(
        _integer(1),
        "rows of one call of a task without generation; without it 1024, of files 32",
        None,
    )
    task_shapes: str = _option(
        _one_of(*TASK_SHAPES),
        "answers in the shape that the caller's client parses (client), or of one shape (seed)",
        "client",
    )
    prefix_caching: bool = _option(_truth, "reuse the KV blocks of equal prefixes (true or false)", True)
    response_cache_bytes: int = _option(
        _integer(0), "bytes of answers kept for equal greedy or seeded requests; 0 keeps none", 0
    )
    wait_for_model_timeout: float = _option(
        _seconds, "seconds that a call with x-wait-for-model waits while the model loads", 300.0
    )
    disable_grammar_support: bool = _option(_truth, "refuse requests with a grammar", False, kind="switch")
    open_objects: bool = _option(
        _truth,
        "let objects have keys that their schema does not name, as JSON Schema does, where the schema says nothing",
        False,
        kind="switch",
    )
    validation_workers: int = _option(_integer(1, 256), "threads that tokenise long prompts", 2)

    hostname: str = _option(_ip_address, "address to listen on", "0.0.0.0")
    port: int = _option(_integer(0, 65535), "port to listen on; 0 takes a free one", 3000)
    root_path: str = _option(_root_path, "prefix of all paths, where a proxy serves this server under a path", "")
    disable_playground: bool = _option(_truth, "serve no page under /playground", False, kind="switch")
    cors_allow_origin: tuple[str, ...] = _option(
        _text, "origin that browsers may call from; repeatable", (), kind="list"
    )
    cors_allow_header: tuple[str, ...] = _option(
        _header_name, "header that browsers may send, beside those that the server reads; repeatable", (), kind="list"
    )
    cors_allow_credentials: bool = _option(
        _truth, "let browsers of the allowed origins send cookies and the like", False, kind="switch"
    )
    cors_max_age: int = _option(_integer(0, 86_400), "seconds for which browsers keep the answer to a preflight", 600)
    api_key: tuple[str, ...] = _option(_text, "key that callers must show; repeatable", (), kind="secrets")
    api_key_file: str | None = _option(_text, "TOML file of keys with names; read again when it changes", None)
    api_key_metrics: bool = _option(_truth, "ask for a key on /metrics too", False, kind="switch")
    shared_prefix_cache: bool = _option(
        _truth, "let callers with different keys reuse each other's prefixes", False, kind="switch"
    )
    tls_cert: str | None = _option(_text, "PEM file of the certificate chain; read again when it changes", None)
    tls_key: str | None = _option(_text, "PEM file of the certificate's key; read again when it changes", None)
    media_payload_limit: int = _option(
        _integer(1, MAX_MEDIA_PAYLOAD), "bytes of a request body with images or audio", 33_554_432
    )
    payload_limit: int | None = _option(
        _integer(1), "bytes of a request body; without it 2,000,000, with images media-payload-limit", None
    )
    max_images: int = _option(_integer(1), "images of one call", 8)
    max_image_bytes: int = _option(_integer(1), "bytes of one image as it is encoded", 20 << 20)
    max_image_pixels: int = _option(_integer(1), "pixels of one image, width times height", 25_000_000)
    max_image_tokens: int = _option(_integer(1), "prompt tokens of one image", 4096)
    image_domains: tuple[str, ...] = _option(
        _domain, "host, such as a.com, *.b.org or *, from which the server fetches images; repeatable", (), kind="list"
    )
    media_workers: int = _option(_integer(1, 64), "processes that read images, at most", 2)
    max_header_bytes: int = _option(_integer(1024), "bytes of a request header", 65_536)
    max_header_fields: int = _option(_integer(8), "fields of a request header", 100)
    header_timeout: float = _option(_seconds, "seconds that a client has to send a header", 10.0)
    body_timeout: float = _option(_seconds, "seconds that a client has to send a body, and one more per 16 KiB", 30.0)
    keep_alive_timeout: float = _option(_seconds, "seconds that an idle connection stays open", 75.0)
    stall_timeout: float = _option(_seconds, "seconds after which a client that reads nothing is cut off", 30.0)
    shutdown_delay: float = _option(
        _pause, "seconds after SIGTERM in which calls are still served while /health/ready is 503", 0.0
    )
    drain_timeout: float = _option(
        _seconds, "seconds that running requests get after SIGTERM and the shutdown delay", 80.0
    )

    tokenizer_config_path: str | None = _option(
        _text, "tokenizer_config.json whose chat template and special tokens win over the model's", None
    )
    max_n: int = _option(_integer(1), "largest n of a chat or completion", 16)
    tool_call_parser: str | None = _option(
        _one_of(*TOOL_FORMAT_NAMES), "format of tool calls; without it the template tells", None
    )
    reasoning_parser: str | None = _option(
        _one_of(*REASONING_NAMES), "format of reasoning; without it the template tells", None
    )
    v1_errors: str = _option(_one_of("mixed", "openai", "tgi"), "form of errors on /v1: mixed, openai or tgi", "mixed")
    strict_model: bool = _option(_truth, "404 for names of models that are not served", False, kind="switch")

    aip_predict_route: str | None = _option(_path, "further path of POST /vertex; Vertex AI sets the variable", None)
    aip_health_route: str | None = _option(_path, "further path of GET /health; Vertex AI sets the variable", None)
    compute_type: str | None = _option(_text, "value of the header x-compute-type", None)
    metrics_alias: str | None = _option(
        _one_of(*METRICS_ALIASES), "engine whose names of metrics /metrics shows beside ours: vllm", None
    )
    otlp_endpoint: str | None = _option(
        _collector,
        "URL of a collector that takes traces by OTLP over gRPC, such as http://127.0.0.1:4317; without it no traces",
        None,
        variables=("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    otlp_service_name: str = _option(
        _text, "name of this server in traces", "textmill-router", variables=("OTEL_SERVICE_NAME",)
    )
    kv_events_port: int | None = _option(
        _integer(0, 65535), "port where events of the KV cache are published over ZeroMQ; without it no events", None
    )
    kv_events_replay_port: int | None = _option(
        _integer(0, 65535), "port where missed events are given again; without it the port behind kv-events-port", None
    )
    kv_events_topic: str | None = _option(
        _text, "topic of the events, none: an empty one; without it kv@<name of the machine>@<name of the model>", None
    )
    json_output: bool = _option(_truth, "log lines are JSON objects", False, kind="switch")
    log_level: str = _option(_log_level, "trace, debug, info, warn or error", "INFO")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may use for the model. Answers have the first."""
        return self.served_model_name or (self.model_id,)

    @property
    def num_replicas(self) -> int:
        """The number of shard groups."""
        return len(self.shard_uds_path or self.shard_address)

    def describe(self) -> dict[str, object]:
        """Return all settings for the log, with secrets masked."""
        shown = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for entry in fields(self):
            if entry.metadata["kind"] == "secrets" and shown[entry.name]:
                shown[entry.name] = "***"
        return shown


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Build the settings. Raises SettingsError; `--help` and unknown flags end the process as argparse does."""
    given = vars(_build_parser().parse_args(list(argv)))
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        flag = "--" + entry.name.replace("_", "-")
        names = (*entry.metadata["variables"], entry.name.upper())
        variable = next((name for name in names if environ.get(name)), names[-1])
        texts: list[str] | None = given[entry.name]
        where = flag
        if texts is None and environ.get(variable):
            where, texts = variable, [environ[variable]]
            if entry.metadata["kind"] == "list":
                texts = texts[0].split(",")
            elif entry.metadata["kind"] == "secrets":
                texts = texts[0].splitlines()
            if entry.name == "hostname" and not _is_ip_address(texts[0]):
                texts = None  # because shells set HOSTNAME to the machine's name, which is no wish to listen there
        if texts is None:
            if entry.default is MISSING:
                raise SettingsError(f"{flag} is missing: wanted {entry.metadata['help']}")
            continue
        shown = "***" if entry.metadata["kind"] == "secrets" else repr(texts[-1])
        try:
            parsed = [entry.metadata["parse"](text) for text in texts]
        except _BadValue as error:
            raise SettingsError(f"{where} is {shown}, wanted {error}") from None
        values[entry.name] = tuple(parsed) if entry.metadata["kind"] in ("list", "secrets") else parsed[-1]
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="textmill-router", description="The HTTP side of Textmill.", allow_abbrev=False
    )
    for entry in fields(Settings):
        flag = "--" + entry.name.replace("_", "-")
        if entry.metadata["kind"] == "switch":
            parser.add_argument(flag, action="append_const", const="true", help=entry.metadata["help"])
        else:
            parser.add_argument(flag, action="append", help=entry.metadata["help"])
    return parser


def _is_ip_address(value: str) -> bool:
    try:
        _ip_address(value)
    except _BadValue:
        return False
    return True


def _check_together(settings: Settings) -> None:
    most_input, most_total = settings.max_input_tokens, settings.max_total_tokens
    if most_input is not None and most_total is not None and most_input >= most_total:
        raise SettingsError(
            f"--max-input-tokens is {most_input} and --max-total-tokens is {most_total}: the first must be smaller, "
            "a request needs room for at least one output token"
        )
    if settings.kv_events_port is None and (settings.kv_events_replay_port or settings.kv_events_topic):
        raise SettingsError("--kv-events-replay-port and --kv-events-topic need --kv-events-port")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("--tls-cert and --tls-key belong together: give both of them, or neither")
    _check_shards(settings)
    if settings.cors_allow_credentials and not settings.cors_allow_origin:
        raise SettingsError("--cors-allow-credentials needs --cors-allow-origin, or every page could use a login")


def _check_shards(settings: Settings) -> None:
    tls = {
        "--shard-tls-cert": settings.shard_tls_cert,
        "--shard-tls-key": settings.shard_tls_key,
        "--shard-tls-ca": settings.shard_tls_ca,
    }
    missing = [flag for flag, file in tls.items() if file is None]
    if bool(settings.shard_uds_path) == bool(settings.shard_address):
        raise SettingsError("wanted either --shard-uds-path or --shard-address, the place of the shard with rank 0")
    if settings.shard_address and missing:
        raise SettingsError(
            f"--shard-address needs {', '.join(missing)}: over TCP router and shard show each other certificates"
        )
    if settings.shard_uds_path and len(missing) < len(tls):
        raise SettingsError("--shard-tls-cert, --shard-tls-key and --shard-tls-ca need --shard-address")
