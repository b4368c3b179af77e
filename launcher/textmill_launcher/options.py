"""The launcher's flags as one table: name, meaning, accepted values. Each has an environment variable of its name."""

import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass


class BadValue(ValueError):
    """A value outside what the option accepts; `str()` is what would have been accepted."""


Parse = Callable[[str], object]


def text(value: str) -> str:
    """Take any non-empty text."""
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
    """Take a share of a whole: above 0, at most 1."""
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
    """Take true/false in the spellings that environment files use."""
    match value.strip().lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
        case _:
            raise BadValue("true or false")


@dataclass(frozen=True, slots=True)
class Choice:
    """Takes one of a few words."""

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


@dataclass(frozen=True, slots=True)
class Option:
    """One flag. `default` None means: unset, the room that uses it decides."""

    name: str  # field of Settings
    parse: Parse
    help: str
    default: object = None
    is_switch: bool = False  # a flag without a value
    is_repeatable: bool = False
    is_secret: bool = False
    short: str | None = None
    aliases: tuple[str, ...] = ()  # further flags, each with its own environment variable
    platform_variables: tuple[str, ...] = ()  # set by a hosting platform; they win over the option's own variable

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """How the value is shown in the help text."""
        if isinstance(self.parse, Choice):
            return "|".join(self.parse.allowed)
        if self.parse is boolean:
            return "true|false"
        return "TEXT" if self.parse in (text, ip_address, word_list) else "N"


V1_ERRORS = ("mixed", "openai", "tgi")
TOOL_FORMATS = ("hermes", "llama3_json", "mistral", "json")
REASONING_FORMATS = ("think", "mistral")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")

OPTIONS: tuple[Option, ...] = (
    # Model
    Option("model_id", text, "hub id, local folder or GGUF file; without it the demo model is served"),
    Option("revision", text, "commit, branch or tag of the hub model"),
    Option("sharded", boolean, "true: one shard per visible device; false: one shard"),
    Option("num_shard", integer(1, 64), "number of shards, one process each"),
    Option("dtype", Choice(DTYPES), "type of weights and KV cache: " + ", ".join(DTYPES)),
    Option("device", Choice(DEVICES), "where to compute: auto (a GPU when there is one), cpu, cuda"),
    Option("kv_cache_bytes", integer(1), "bytes of the KV cache of each shard; without it a share of memory"),
    Option(
        "memory_fraction",
        fraction,
        "share of the memory that a shard may fill",
        aliases=("--cuda-memory-fraction",),
    ),
    Option("num_threads", integer(1), "threads of a shard's steps; without it the cores, from 3 on less one"),
    Option("native_cache_dir", text, "folder of compiled CPU kernels"),
    Option("no_native_kernels", boolean, "compute by torch alone, for bisection", default=False, is_switch=True),
    Option(
        "no_native_decoder",
        boolean,
        "llama-type models by transformers' code",
        default=False,
        is_switch=True,
        aliases=("--no-fast-decoder",),
    ),
    Option(
        "trust_remote_code",
        boolean,
        "run the modelling code that the model brings, with all the rights of the shard",
        default=False,
        is_switch=True,
    ),
    Option(
        "allow_pickle",
        boolean,
        "serve pickled weights (*.bin) where there are no safetensors",
        default=False,
        is_switch=True,
    ),
    Option("disable_swaps", text, "comma-separated: qkv, gate_up, packed_linear, rms_norm; for bisection"),
    Option("huggingface_hub_cache", text, "folder of downloaded hub models"),
    Option("conversion_cache", text, "folder of models converted from GGUF"),
    # Limits
    Option("max_concurrent_requests", integer(1), "requests held at once; more get 429"),
    Option("max_best_of", integer(1), "largest best_of of a request"),
    Option("max_stop_sequences", integer(0), "stop strings of a request"),
    Option("max_top_n_tokens", integer(0), "alternatives per token that a request may ask for"),
    Option("max_input_tokens", integer(1), "prompt tokens of a request", aliases=("--max-input-length",)),
    Option("max_total_tokens", integer(2), "prompt and output tokens of a request"),
    Option("max_batch_prefill_tokens", integer(1), "prompt tokens computed in one step"),
    Option("max_batch_total_tokens", integer(1), "tokens that the KV cache holds; without it what memory allows"),
    Option(
        "enable_prefill_logprobs",
        boolean,
        "taken for TGI's sake, without effect: prompt log-probabilities need no flag",
        default=False,
        is_switch=True,
    ),
    Option("max_n", integer(1), "largest n of a chat or completion"),
    Option("max_client_batch_size", integer(1), "prompts of one call"),
    Option("response_cache_bytes", integer(0), "bytes of answers kept for equal greedy or seeded requests; 0: none"),
    Option("wait_for_model_timeout", seconds, "seconds that a call with x-wait-for-model waits for the model"),
    Option("validation_workers", integer(1, 256), "threads that tokenise long prompts"),
    Option("payload_limit", integer(1), "bytes of a request's body"),
    # OpenAI dialect
    Option("tokenizer_config_path", text, "tokenizer_config.json whose chat template wins over the model's"),
    Option("v1_errors", Choice(V1_ERRORS), "form of errors on /v1: " + ", ".join(V1_ERRORS)),
    Option("strict_model", boolean, "404 for names of models that are not served", default=False, is_switch=True),
    Option("tool_call_parser", Choice(TOOL_FORMATS), "format of tool calls: " + ", ".join(TOOL_FORMATS)),
    Option("reasoning_parser", Choice(REASONING_FORMATS), "format of reasoning: " + ", ".join(REASONING_FORMATS)),
    # Sampling
    Option("disable_grammar_support", boolean, "refuse requests with a grammar", default=False, is_switch=True),
    Option("watermark_gamma", open_share, "part of the vocabulary that is green for the watermark"),
    Option("watermark_delta", logit, "what the watermark adds to the logits of green tokens"),
    # Serving
    Option("hostname", ip_address, "address to listen on", default="0.0.0.0"),
    Option(
        "port",
        integer(1, 65535),
        "port to listen on",
        default=3000,
        short="-p",
        platform_variables=("AIP_HTTP_PORT",),
    ),
    Option("cors_allow_origin", word_list, "origin that browsers may call from; repeatable", is_repeatable=True),
    Option("api_key", text, "bearer key that generate routes ask for", is_secret=True),
    Option(
        "graceful_termination_timeout",
        seconds,
        "seconds that running requests get after SIGTERM",
        default=90.0,
        short="-g",
    ),
    Option("json_output", boolean, "log lines are JSON objects", default=False, is_switch=True),
    # Processes
    Option("shard_uds_path", text, "prefix of the shards' sockets; without it a private folder"),
    Option("master_addr", text, "address where several shards meet", default="127.0.0.1"),
    Option("master_port", integer(1, 65535), "port where several shards meet; without it a free one"),
)
