"""The settings of the launcher, which are built once from flags, environment and file, checked, and never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textmill_launcher.adapter_entries import adapter_list
from textmill_launcher.config_file import read_config_file
from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.flag_parser import FlagParser
from textmill_launcher.loopback import is_loopback
from textmill_launcher.option_reader import read_options
from textmill_launcher.options import (
    ATTENTION_BACKENDS,
    DEVICES,
    DTYPES,
    KV_CACHE_DTYPES,
    LOG_LEVELS,
    METRICS_ALIASES,
    POOLINGS,
    REASONING_FORMATS,
    TASK_SHAPES,
    TOOL_FORMATS,
    V1_ERRORS,
    BadValue,
    Child,
    Choice,
    Group,
    batch_sizes,
    boolean,
    collector_url,
    derived_option,
    fraction,
    integer,
    ip_address,
    lines,
    log_level,
    logit,
    open_share,
    option,
    options_of,
    positive_seconds,
    root_path,
    seconds,
    switch,
    tcp_address,
    text,
    url_path,
    word_list,
)
from textmill_launcher.task_choice import task_name
from textmill_launcher.tgi_options import TGI_OPTIONS

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")
LAST_PORT = 65_535
NODE_PORT = 29500  # where launchers meet without --master-port; torch's own default for ranks of several machines
MAX_SOCKET_PATH_BYTES = 104  # the kernel's 108 less the terminating zero and a rank of up to two digits and its dash

# The first field of each section of `--help`. A new field belongs to the section in which it stands.
FIRST_OF_GROUP = {
    "model_id": Group.MODEL,
    "max_concurrent_requests": Group.LIMITS,
    "device": Group.MEMORY,
    "hostname": Group.SERVING,
    "api_key": Group.SECURITY,
    "json_output": Group.LOGS,
}
# What is read from the environment without being a flag, and by whom.
ENVIRONMENT = {
    ", ".join(TOKEN_VARIABLES): "the token of the hub; the first that is set counts (launcher, for the download)",
    "HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE": "the hub's own library (the download)",
    "CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES": "the list of devices, which counts the shards (launcher, torch)",
    "OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS": "OpenTelemetry's own library (router, for traces)",
    "HOME, XDG_CACHE_HOME": "where caches lie that no flag places (launcher, shards)",
}

SERVES = "Serve a language model over HTTP: starts one shard per device and the router."
EPILOG = (
    "Each flag can be given as an environment variable, e.g. --max-input-tokens as MAX_INPUT_TOKENS, or as a key of "
    "the file of --config. The flag wins over the variable, and the variable over the file. Read on in docs/flags.md."
)

ROUTER, SHARD = Child.ROUTER, Child.SHARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field with an option is a flag (`--max-best-of`) and an environment variable (`MAX_BEST_OF`); the flag wins.

    None means that the user gave neither. The default then belongs to the room that uses the value, and the launcher
    hands nothing on.
    """

    # Model
    model_id: str | None = option(
        text,
        "hub id, local folder or GGUF file; without it the demo model is served",
        platform_variables=("HF_MODEL_ID",),
    )
    revision: str | None = option(
        text, "commit, branch or tag of the hub model", platform_variables=("HF_MODEL_REVISION",)
    )
    task: str | None = option(
        task_name,
        "task of the model, such as text-classification; without it the model's files tell",
        platform_variables=("HF_TASK",),
    )
    pooling: str | None = option(
        Choice(POOLINGS),
        "how the vectors of tokens become the vector of a text; auto: as the model's files say",
        to=SHARD,
    )
    served_model_name: tuple[str, ...] = option(
        word_list,
        "name that clients use for the model instead of --model-id; repeatable, answers have the first",
        (),
        is_repeatable=True,
        to=ROUTER,
    )
    dtype: str | None = option(Choice(DTYPES), "type of the weights", to=SHARD)
    kv_cache_dtype: str | None = option(
        Choice(KV_CACHE_DTYPES),
        "type of keys and values; auto is that of the weights, fp8_e4m3fn takes half of the memory",
        to=SHARD,
    )
    tokenizer_config_path: str | None = option(
        text, "tokenizer_config.json whose chat template wins over the model's", to=ROUTER
    )
    tool_call_parser: str | None = option(
        Choice(TOOL_FORMATS), "format of tool calls; without it the template tells", to=ROUTER
    )
    reasoning_parser: str | None = option(
        Choice(REASONING_FORMATS), "format of reasoning; without it the template tells", to=ROUTER
    )
    huggingface_hub_cache: str | None = option(text, "folder of downloaded hub models")
    conversion_cache: str = derived_option(
        text, "folder of models converted from GGUF, and of tokenizers; without it ~/.cache/textmill/converted"
    )
    lora_adapters: tuple[str, ...] = option(
        adapter_list,
        "LoRA adapters, between commas: ID, ID@REVISION, NAME=FOLDER or NAME=ID@REVISION",
        (),
        is_repeatable=True,
    )
    max_lora_rank: int | None = option(integer(1, 512), "largest rank of a LoRA adapter", to=SHARD)
    lora_memory_bytes: int | None = option(
        integer(0),
        "bytes of each shard for LoRA adapters; without it 5 % of those for the KV cache where adapters are asked for",
        to=SHARD,
    )
    media_cache_bytes: int | None = option(
        integer(1),
        "bytes of the first shard for the images of a model with images; a request may need half of them "
        "(default: 256 MiB on a CPU, 1 GiB on a GPU)",
        to=SHARD,
    )
    lora_runtime_updates: bool = switch(
        "let callers load and unload LoRA adapters; needs API keys, or a loopback address", to=ROUTER
    )
    lora_dir: str | None = option(text, "folder below which callers may load LoRA adapters from", to=ROUTER)
    lora_hub: tuple[str, ...] = option(
        adapter_list,
        "adapters of the hub that callers may load, between commas: ID or ID@REVISION; fetched before the start",
        (),
        is_repeatable=True,
    )
    # Limits
    max_concurrent_requests: int | None = option(integer(1), "requests held at once; more get 429", to=ROUTER)
    max_queued_requests: int | None = option(integer(1), "requests that wait for a slot; more get 429", to=ROUTER)
    max_queued_tokens: int | None = option(integer(1), "prompt tokens of all waiting requests; more get 429", to=ROUTER)
    max_queued_rows: int | None = option(
        integer(1), "rows in work or waiting of a task without generation; more get 429", to=ROUTER
    )
    max_queued_file_bytes: int | None = option(
        integer(1),
        "bytes of bodies with files, in work or waiting, of a task of images or audio; more get 429",
        to=ROUTER,
    )
    batch_window_ms: int | None = option(
        integer(0, 1000), "milliseconds that rows of a task wait for more rows while no batch runs", to=ROUTER
    )
    max_task_rows: int | None = option(
        integer(1), "rows of one call of a task without generation; without it 1024, of files 32", to=ROUTER
    )
    media_payload_limit: int | None = option(
        integer(1, 62_914_560), "bytes of a request body with images or audio", to=ROUTER
    )
    max_images: int | None = option(integer(1), "images of one call", to=ROUTER)
    max_image_bytes: int | None = option(
        integer(1), "bytes of one image in a prompt, as it is encoded", aliases=("--max-image-fetch-size",), to=ROUTER
    )
    max_image_pixels: int | None = option(
        integer(1),
        "most pixels of an image, told before the image is decoded; without it 25,000,000 in prompts",
        to=SHARD | ROUTER,
    )
    max_image_tokens: int | None = option(integer(1), "prompt tokens of one image", to=ROUTER)
    image_domains: tuple[str, ...] = option(
        word_list,
        "hosts, such as a.com, *.b.org or *, from which the server fetches images; repeatable; without it none",
        (),
        is_repeatable=True,
        to=ROUTER,
    )
    media_workers: int | None = option(integer(1, 64), "processes that read the images of prompts, at most", to=ROUTER)
    max_audio_seconds: float | None = option(
        positive_seconds, "most seconds of audio, counted while the audio is decoded", to=SHARD
    )
    max_queue_seconds: float | None = option(
        positive_seconds, "predicted seconds of waiting; more get 429; without it the wait is not bounded", to=ROUTER
    )
    max_input_tokens: int | None = option(
        integer(1), "prompt tokens of a request", aliases=("--max-input-length",), to=ROUTER
    )
    max_total_tokens: int | None = option(integer(2), "prompt and output tokens of a request", to=ROUTER)
    max_batch_prefill_tokens: int | None = option(integer(1), "prompt tokens computed in one step", to=ROUTER)
    max_batch_total_tokens: int | None = option(
        integer(1),
        "tokens that the KV cache holds; without it as many as memory allows",
        to=SHARD,
        flag_there="--max-kv-tokens",
    )
    max_best_of: int | None = option(integer(1), "largest best_of of a request", to=ROUTER)
    max_n: int | None = option(integer(1), "largest n of a chat or completion", to=ROUTER)
    max_client_batch_size: int | None = option(integer(1), "prompts of one call", to=ROUTER)
    max_stop_sequences: int | None = option(integer(0), "stop strings of a request", to=ROUTER)
    max_top_n_tokens: int | None = option(integer(0), "alternatives per token that a request may ask for", to=ROUTER)
    payload_limit: int | None = option(
        integer(1),
        "bytes of a request's body; without it 2,000,000, or --media-payload-limit where the model takes images",
        to=ROUTER,
    )
    max_header_bytes: int | None = option(integer(1024), "bytes of a request's header", to=ROUTER)
    max_header_fields: int | None = option(integer(8), "fields of a request's header", to=ROUTER)
    disable_grammar_support: bool = switch("refuse requests with a grammar", to=ROUTER)
    # Memory and computing
    device: str | None = option(Choice(DEVICES), "where to compute; auto is a GPU where there is one", to=SHARD)
    sharded: bool | None = option(boolean, "without --num-shard: true: one shard per visible device; false: one")
    num_shard: int | None = option(
        integer(1, 64), "number of shards, one process each", platform_variables=("SM_NUM_GPUS",)
    )
    num_replicas: int = option(integer(1, 64), "copies of the model behind the router, each of --num-shard shards", 1)
    memory_fraction: float | None = option(
        fraction,
        "share of the memory that a shard may fill; without it 0.8 of a GPU, 0.4 of the RAM",
        aliases=("--cuda-memory-fraction",),
        to=SHARD,
    )
    kv_cache_bytes: int | None = option(
        integer(1), "bytes of the KV cache of each shard; without it a share of memory", to=SHARD
    )
    block_size: int | None = option(integer(1), "tokens of a block of the KV cache", to=SHARD)
    num_slots: int | None = option(integer(1), "requests that run at once", to=SHARD)
    max_step_tokens: int | None = option(
        integer(1), "most tokens of one step; without it 1024, or the prefill budget and 256", to=SHARD
    )
    max_batch_tokens: int | None = option(
        integer(1), "most tokens of one batch of rows; without it 2048 on a CPU, 16384 on a GPU", to=SHARD
    )
    num_threads: int | None = option(
        integer(1), "threads of a shard's steps; without it the cores, from 3 on less one", to=SHARD
    )
    prefix_caching: bool | None = option(boolean, "reuse the KV cache of equal beginnings", to=ROUTER)
    response_cache_bytes: int | None = option(
        integer(0), "bytes of answers kept for equal greedy or seeded requests; 0: none", to=ROUTER
    )
    watermark_gamma: float | None = option(
        open_share, "part of the vocabulary that is green for the watermark", to=SHARD
    )
    watermark_delta: float | None = option(logit, "what the watermark adds to the logits of green tokens", to=SHARD)
    native_cache_dir: str | None = option(
        text, "folder of compiled CPU kernels; without it ~/.cache/textmill/native", to=SHARD
    )
    attention_backend: str | None = option(
        Choice(ATTENTION_BACKENDS),
        "how attention is computed; without it triton on a GPU, native kernels on a CPU; flash needs FlashAttention",
        to=SHARD,
    )
    no_native_kernels: bool = switch("compute by torch alone, for bisection", to=SHARD)
    no_native_decoder: bool = switch(
        "llama-type models by transformers' code, for bisection", aliases=("--no-fast-decoder",), to=SHARD
    )
    cuda_graphs: str | None = option(
        batch_sizes,
        "on a GPU, numbers of requests whose decode steps become CUDA graphs, with commas; 0: none; without it up to "
        "--num-slots",
        to=SHARD,
    )
    no_graphs: bool = switch("on a GPU, record no CUDA graphs, for bisection", to=SHARD)
    no_overlap: bool = switch(
        "on a GPU, launch no step before the tokens of the step before are read, for bisection", to=SHARD
    )
    disable_swaps: str | None = option(
        text,
        "comma-separated: qkv, gate_up, packed_linear, rms_norm, on a GPU rotary_turn, residual, experts; for "
        "bisection",
        to=SHARD,
    )
    # Serving
    hostname: str = option(ip_address, "address to listen on", "0.0.0.0", to=ROUTER)
    port: int = option(
        integer(1, 65535), "port to listen on", 3000, short="-p", platform_variables=("AIP_HTTP_PORT",), to=ROUTER
    )
    aip_predict_route: str | None = option(
        url_path, "further path of POST /vertex; Vertex AI sets the variable", to=ROUTER
    )
    aip_health_route: str | None = option(
        url_path, "further path of GET /health; Vertex AI sets the variable", to=ROUTER
    )
    compute_type: str | None = option(text, "value of the header x-compute-type", to=ROUTER)
    metrics_alias: str | None = option(
        Choice(METRICS_ALIASES), "engine whose names of metrics /metrics shows too, for endpoint pickers", to=ROUTER
    )
    kv_events_port: int | None = option(
        integer(1, 65535),
        "port of the KV cache's events over ZeroMQ; needs textmill[kv-events]",
        to=ROUTER,
    )
    kv_events_replay_port: int | None = option(
        integer(1, 65535), "port where missed events are given again; without it the next one", to=ROUTER
    )
    kv_events_topic: str | None = option(
        text, "topic of the events, none: an empty one; without it kv@MACHINE@MODEL", to=ROUTER
    )
    v1_errors: str | None = option(Choice(V1_ERRORS), "form of errors on /v1", to=ROUTER)
    task_shapes: str | None = option(
        Choice(TASK_SHAPES), "answers in the shape that the caller's client parses, or of one shape", to=ROUTER
    )
    strict_model: bool = switch("404 for names of models that are not served", to=ROUTER)
    open_objects: bool = switch("let objects have keys that their schema does not name", to=ROUTER)
    validation_workers: int | None = option(integer(1, 256), "threads that tokenise long prompts", to=ROUTER)
    wait_for_model_timeout: float | None = option(
        positive_seconds, "seconds that a call with x-wait-for-model waits for the model", to=ROUTER
    )
    header_timeout: float | None = option(positive_seconds, "seconds that a client has to send a header", to=ROUTER)
    body_timeout: float | None = option(
        positive_seconds, "seconds that a client has to send a body, and one more per 16 KiB", to=ROUTER
    )
    keep_alive_timeout: float | None = option(positive_seconds, "seconds that an idle connection stays open", to=ROUTER)
    stall_timeout: float | None = option(
        positive_seconds, "seconds after which a client that reads nothing is cut off", to=ROUTER
    )
    root_path: str | None = option(root_path, "prefix of all paths behind a proxy, such as /llm", to=ROUTER)
    disable_playground: bool = switch("serve no page under /playground", to=ROUTER)
    graceful_termination_timeout: float = option(
        seconds, "seconds that running requests get after SIGTERM", 90.0, short="-g"
    )
    shutdown_delay: float = option(
        seconds, "seconds after SIGTERM in which calls are still served while /health/ready is 503", 0.0, to=ROUTER
    )
    router_lease_s: float | None = option(
        positive_seconds, "seconds of silence after which a shard takes the router for gone", to=SHARD
    )
    max_restarts: int = option(integer(0), "restarts of the shards, and of the router, in --restart-window", 3)
    restart_window: float = option(seconds, "seconds after which a restart no longer counts", 600.0)
    shard_uds_path: str | None = option(text, "prefix of the shards' sockets; without it a private folder")
    num_nodes: int = option(
        integer(1, 64),
        "machines that share one model, each with a launcher and --num-shard shards",
        1,
        platform_variables=("LWS_GROUP_SIZE",),
    )
    node_rank: int = option(
        integer(0, 63),
        "number of this machine among --num-nodes; node 0 runs the router",
        0,
        platform_variables=("LWS_WORKER_INDEX",),
    )
    node_timeout: float = option(positive_seconds, "seconds that a node waits for one that is not there", 600.0)
    master_addr: str = option(
        text,
        "address where several shards meet; with several nodes one of node 0 that all reach",
        "127.0.0.1",
        platform_variables=("LWS_LEADER_ADDRESS",),
    )
    master_port: int | None = option(
        integer(1, 65535),
        f"port where several shards meet, without it a free one; with several nodes {NODE_PORT}, where launchers meet",
    )
    # Security
    api_key: tuple[str, ...] = option(
        lines,
        "key that callers must show; repeatable; the variable holds one key on each line",
        (),
        is_repeatable=True,
        is_secret=True,
    )
    api_key_file: str | None = option(
        text, "TOML file of keys with names and weights (SECURITY.md); read again when it changes", to=ROUTER
    )
    api_key_metrics: bool = switch("ask for a key on /metrics too", to=ROUTER)
    shared_prefix_cache: bool = switch("let callers with different keys reuse each other's prefixes", to=ROUTER)
    tls_cert: str | None = option(
        text, "PEM file of the certificate chain, for HTTPS; read again when it changes", to=ROUTER
    )
    tls_key: str | None = option(text, "PEM file of the certificate's key; read again when it changes", to=ROUTER)
    shard_address: str | None = option(
        tcp_address,
        "TCP address, with a port for each replica from this one on, where the router reaches the shards instead of a "
        "Unix socket; needs --shard-tls-cert, --shard-tls-key and --shard-tls-ca",
    )
    shard_tls_cert: str | None = option(
        text, "PEM file of the certificate chain that router and shards show each other on --shard-address"
    )
    shard_tls_key: str | None = option(text, "PEM file of that certificate's key")
    shard_tls_ca: str | None = option(text, "PEM file of the authority that has signed that certificate")
    cors_allow_origin: tuple[str, ...] = option(
        word_list, "origin that browsers may call from; repeatable", (), is_repeatable=True, to=ROUTER
    )
    cors_allow_header: tuple[str, ...] = option(
        word_list,
        "header that browsers may send beside those that the server reads; repeatable; without it any header",
        (),
        is_repeatable=True,
        to=ROUTER,
    )
    cors_allow_credentials: bool = switch(
        "let browsers of the allowed origins send cookies and the like; needs --cors-allow-origin", to=ROUTER
    )
    cors_max_age: int | None = option(
        integer(0, 86_400), "seconds for which browsers keep the answer to a preflight", to=ROUTER
    )
    hf_token_file: str | None = option(text, "file with the token of the hub; HF_TOKEN wins")
    trust_remote_code: bool = switch(
        "run the modelling code that the model brings, with all the rights of the shard",
        platform_variables=("HF_MODEL_TRUST_REMOTE_CODE",),
        to=SHARD,
    )
    allow_pickle: bool = switch("serve pickled weights (*.bin) where there are no safetensors", to=SHARD)
    text_only: bool = switch("serve texts alone with a model that also takes images", to=SHARD)
    # Logs
    json_output: bool = switch("log lines are JSON objects", to=ROUTER | SHARD)
    otlp_endpoint: str | None = option(
        collector_url,
        "URL of a collector that takes traces by OTLP over gRPC, such as http://127.0.0.1:4317; needs textmill[otel]",
        platform_variables=("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        to=ROUTER,
    )
    otlp_service_name: str | None = option(
        text, "name of this server in traces", platform_variables=("OTEL_SERVICE_NAME",), to=ROUTER
    )
    log_level: str = option(log_level, "least level of the log: " + ", ".join(LOG_LEVELS), "INFO")
    env: bool = switch("log the versions, devices and limits of this machine", short="-e", has_variable=False)
    # Read from the environment alone
    hub_token: str | None  # value of the first of TOKEN_VARIABLES that is set
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES, else NVIDIA_VISIBLE_DEVICES; "" counts as one device
    warnings: tuple[str, ...]  # to be logged once logging works
    notes: tuple[str, ...]  # the same, of what has no effect

    def describe(self) -> dict[str, object]:
        """Return the settings that have a value, for the log, with secrets masked."""
        shown = {entry.name: getattr(self, entry.name) for entry in OPTIONS}
        shown["hub_token"] = self.hub_token
        for secret in ("hub_token", *(entry.name for entry in OPTIONS if entry.is_secret)):
            shown[secret] = "***" if shown[secret] else None
        return {name: value for name, value in shown.items() if value not in (None, ())}


OPTIONS = options_of(Settings, FIRST_OF_GROUP)
ALL_OPTIONS = (*OPTIONS, *TGI_OPTIONS)


@dataclass(frozen=True, slots=True)
class Start:
    """What a command line asks for."""

    settings: Settings
    sources: Mapping[str, str]  # the flag, variable or key that brought a value, by the option's name
    flags: Mapping[str, object]  # what the parser read, for the flags that a command has beside the options


def wants_json(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether log lines are JSON, by a look that also serves where the settings cannot be read."""
    try:
        return "--json-output" in argv or boolean(environ.get("JSON_OUTPUT") or "false")
    except BadValue:
        return False


def serve_parser(prog: str = "launcher", description: str = SERVES) -> FlagParser:
    """Return a parser of all flags that the launcher has."""
    parser = FlagParser(prog, description, EPILOG)
    parser.add_argument("--config", metavar="FILE", help="TOML file whose keys are flags; flags and variables win")
    parser.add_options(ALL_OPTIONS)
    return parser


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Build the settings. Raises `SettingsError` for one bad value, `ConflictingSettings` for a bad combination.

    `--help`, `--version` and unknown flags end the process as argparse does (0, 0, 2).
    """
    return read_start(serve_parser(), argv, environ).settings


def read_start(parser: FlagParser, argv: Sequence[str], environ: Mapping[str, str]) -> Start:
    """Read flags, environment and the file of `--config`. Raises and ends as `load_settings` does."""
    flags = parser.read(argv)
    file = {} if flags["config"] is None else read_config_file(Path(flags["config"]), ALL_OPTIONS)
    reading = read_options(ALL_OPTIONS, flags, environ, file)
    values = reading.values
    if values["conversion_cache"] is None:
        values["conversion_cache"] = str(_cache_folder(environ) / "textmill" / "converted")
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    settings = Settings(
        **values,
        hub_token=_hub_token(environ, values["hf_token_file"]),
        visible_devices=devices if devices is not None else environ.get("NVIDIA_VISIBLE_DEVICES"),
        warnings=(*reading.warnings, *_dangers(values["master_addr"])),
        notes=reading.notes,
    )
    _check_together(settings)
    _check_nodes(settings, has_address="master_addr" in reading.sources)
    return Start(settings, reading.sources, flags)


def _dangers(master_addr: str) -> tuple[str, ...]:
    """Return the warnings about values that are allowed and open the machine."""
    if is_loopback(master_addr):
        return ()
    return (
        f"--master-addr is {master_addr}: shards that meet there talk without a key and without encryption, so no "
        "stranger may reach that network",
    )


def _hub_token(environ: Mapping[str, str], token_file: str | None) -> str | None:
    """Return the hub's token of the environment, else of the file. Raises `SettingsError` for a file without one."""
    named = next((environ[name] for name in TOKEN_VARIABLES if environ.get(name)), None)
    if named is not None or token_file is None:
        return named
    try:
        token = Path(token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--hf-token-file {token_file} cannot be read: {error}") from None
    if not token:
        raise SettingsError(f"--hf-token-file {token_file} is empty, wanted the token of the hub")
    return token


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


def _check_nodes(settings: Settings, *, has_address: bool) -> None:
    """Raise `ConflictingSettings` for a node that cannot be one of several."""
    if settings.node_rank >= settings.num_nodes:
        raise ConflictingSettings(
            f"--node-rank is {settings.node_rank} and --num-nodes is {settings.num_nodes}: nodes count from 0, so the "
            "rank must be smaller"
        )
    if settings.num_nodes == 1:
        return
    if not has_address:
        raise ConflictingSettings(
            f"--num-nodes is {settings.num_nodes}, and --master-addr is missing: give an address of node 0 that all "
            "nodes reach"
        )
    if settings.num_replicas > 1:
        raise ConflictingSettings(
            f"--num-nodes is {settings.num_nodes} and --num-replicas is {settings.num_replicas}: several nodes serve "
            "one copy of the model; start a group of nodes for each copy and a router in front (docs/deploy.md)"
        )
    if settings.lora_adapters or settings.lora_runtime_updates or settings.shard_address is not None:
        raise ConflictingSettings(
            f"--num-nodes is {settings.num_nodes}: adapters (--lora-adapters, --lora-runtime-updates) and a router on "
            "another machine (--shard-address) go with one node only"
        )


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
    prefill, step = settings.max_batch_prefill_tokens, settings.max_step_tokens
    if prefill is not None and step is not None and prefill > step:
        raise ConflictingSettings(
            f"--max-batch-prefill-tokens is {prefill} and --max-step-tokens is {step}: "
            "the first must not be larger, because prompts are computed in steps"
        )
    if settings.kv_events_port is None and (settings.kv_events_replay_port or settings.kv_events_topic):
        raise ConflictingSettings("--kv-events-replay-port and --kv-events-topic need --kv-events-port")
    _check_ports(settings)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConflictingSettings("--tls-cert and --tls-key belong together: give both of them, or neither")
    _check_shard_address(settings)
    if settings.cors_allow_credentials and not settings.cors_allow_origin:
        raise ConflictingSettings("--cors-allow-credentials needs --cors-allow-origin, or every page could use a login")
    prefix = settings.shard_uds_path
    if prefix is not None and len(prefix.encode()) > MAX_SOCKET_PATH_BYTES:
        raise SettingsError(
            f"--shard-uds-path has {len(prefix.encode())} bytes, wanted at most {MAX_SOCKET_PATH_BYTES}: "
            "the kernel limits the length of a socket's path"
        )


def _check_ports(settings: Settings) -> None:
    """Raise `ConflictingSettings` for two flags that want one port of this machine."""
    if settings.kv_events_port is None:
        return
    ports = {
        "--port": settings.port,
        "--kv-events-port": settings.kv_events_port,
        "--kv-events-replay-port": settings.kv_events_replay_port or settings.kv_events_port + 1,
    }
    for port in ports.values():
        same = [other for other, taken in ports.items() if taken == port]
        if len(same) > 1:
            raise ConflictingSettings(f"{' and '.join(same)} are {port}: give each a port of its own")


def _check_shard_address(settings: Settings) -> None:
    """Raise `ConflictingSettings` unless the shards' address comes with all files of TLS, or neither is given."""
    tls = {
        "--shard-tls-cert": settings.shard_tls_cert,
        "--shard-tls-key": settings.shard_tls_key,
        "--shard-tls-ca": settings.shard_tls_ca,
    }
    missing = [flag for flag, file in tls.items() if file is None]
    if settings.shard_address is None:
        if len(missing) < len(tls):
            raise ConflictingSettings("--shard-tls-cert, --shard-tls-key and --shard-tls-ca need --shard-address")
        return
    if missing:
        raise ConflictingSettings(
            f"--shard-address needs {', '.join(missing)}: over TCP router and shards show each other certificates"
        )
    last_port = int(settings.shard_address.rpartition(":")[2]) + settings.num_replicas - 1
    if last_port > LAST_PORT:
        raise ConflictingSettings(
            f"--shard-address is {settings.shard_address} with {settings.num_replicas} replicas: each takes the next "
            f"port, and the last one would be {last_port}"
        )
