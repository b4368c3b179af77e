"""Command lines and environments of the children. Each option says in `Settings` which child reads its value."""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textmill_launcher.loopback import is_loopback, loopback_interface
from textmill_launcher.options import Child
from textmill_launcher.settings import OPTIONS, TOKEN_VARIABLES, Settings
from textmill_launcher.task_choice import ROW_TASKS

# The router takes the keys from its environment, because everybody on the machine can read a command line.
SECRET_VARIABLES = ("API_KEY", *TOKEN_VARIABLES)

# The flags of a child say where shards are. A variable of the launcher would speak to each rank.
_PLACE_VARIABLES = ("SHARD_UDS_PATH", "SHARD_ADDRESS", "SHARD_TLS_CERT", "SHARD_TLS_KEY", "SHARD_TLS_CA")

_PLAIN_OUTPUT = {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

# Options of shards that say something of one machine, so that the nodes of one model may differ in them.
OF_ONE_MACHINE = frozenset({"memory_fraction", "kv_cache_bytes", "num_threads", "native_cache_dir", "json_output"})

CONVERSION_DTYPE = "bfloat16"
DECODE_ROOM_TOKENS = 256  # in a step beside the prefill budget, because each slot that decodes takes one token


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A local folder with a model that a shard can load."""

    path: Path
    model_id: str  # the name that clients see
    model_sha: str | None  # commit of a hub model
    task: str = "text-generation"  # under the name that `task_choice.py` gives


@dataclass(frozen=True, slots=True)
class AdapterFolders:
    """The names and folders of the adapters of the start, and of the repositories that callers may load later."""

    start: tuple[tuple[str, Path], ...] = ()
    hub: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """The facts in which the shards of one model differ."""

    rank: int
    world_size: int
    socket: Path
    master_addr: str
    master_port: int | None  # None with one shard, which meets no other
    replica: int = 0
    local_rank: int = 0  # among the shards of this machine
    local_world_size: int = 1


def shard_command(settings: Settings, model: ModelFolder, place: ShardPlace) -> list[str]:
    """Return the command line of one shard."""
    meeting = (
        []
        if place.master_port is None
        else ["--master-addr", place.master_addr, "--master-port", str(place.master_port)]
    )
    return [
        *(sys.executable, "-m", "textmill_shard", "serve"),
        *_model_flags(model),
        *(["--task", model.task] if model.task in ROW_TASKS else []),
        *("--uds-path", str(place.socket)),
        *("--rank", str(place.rank), "--world-size", str(place.world_size)),
        *("--local-rank", str(place.local_rank), "--local-world-size", str(place.local_world_size)),
        *("--replica", str(place.replica), "--num-replicas", str(settings.num_replicas)),
        *meeting,
        *(_tcp_flags(settings, [place.replica]) if place.rank == 0 else []),
        *_step_tokens(settings),
        *_adapter_memory(settings),
        *_forwarded(settings, Child.SHARD),
    ]


def router_command(
    settings: Settings,
    model: ModelFolder,
    rank0_sockets: Sequence[Path],
    adapters: AdapterFolders = AdapterFolders(),
    adapters_file: Path | None = None,
) -> list[str]:
    """Return the command line of the router, with the socket of rank 0 of each replica in order.

    In `adapters_file` a router leaves the adapters that callers have loaded for the router that starts after it.
    """
    kept = [] if adapters_file is None else ["--lora-state-file", str(adapters_file)]
    return [
        *(sys.executable, "-m", "textmill_router"),
        *_model_flags(model),
        *("--task", model.task),
        *(_tcp_flags(settings, range(len(rank0_sockets))) or _socket_flags(rank0_sockets)),
        *(word for name, folder in adapters.start for word in ("--lora-adapter", f"{name}={folder}")),
        *(word for name, folder in adapters.hub for word in ("--lora-hub-folder", f"{name}={folder}")),
        *kept,
        "--launcher-notes",
        *("--drain-timeout", str(drain_timeout_s(settings.graceful_termination_timeout))),
        *_forwarded(settings, Child.ROUTER),
    ]


def _socket_flags(rank0_sockets: Sequence[Path]) -> list[str]:
    return [word for socket in rank0_sockets for word in ("--shard-uds-path", str(socket))]


def _tcp_flags(settings: Settings, replicas: Iterable[int]) -> list[str]:
    """Return the flags of the TCP addresses of these replicas and of the certificates; none without --shard-address."""
    address, certificate, key = settings.shard_address, settings.shard_tls_cert, settings.shard_tls_key
    authority = settings.shard_tls_ca
    if address is None or certificate is None or key is None or authority is None:
        return []
    host, _, port = address.rpartition(":")
    places = [word for replica in replicas for word in ("--shard-address", f"{host}:{int(port) + replica}")]
    return [*places, "--shard-tls-cert", certificate, "--shard-tls-key", key, "--shard-tls-ca", authority]


def drain_timeout_s(grace_s: float) -> float:
    """Return for how many seconds the router lets requests run, which is less than the grace before its SIGKILL.

    So the router ends by itself.
    """
    return max(0.1, grace_s - min(10.0, 0.1 * grace_s))


def convert_command(gguf_file: Path, settings: Settings) -> list[str]:
    """Return the command line that converts a GGUF file and prints the folder as its last line."""
    return [
        *(sys.executable, "-m", "textmill_shard", "convert", "--gguf", str(gguf_file)),
        # There is one converted folder, whichever --dtype the shard computes in.
        *("--cache-dir", settings.conversion_cache, "--dtype", CONVERSION_DTYPE),
        *(["--json-output"] if settings.json_output else []),
    ]


def tokenizer_command(folder: Path, settings: Settings) -> list[str]:
    """Return the command line that makes a tokenizer.json and prints the folder with the file as its last line."""
    return [
        *(sys.executable, "-m", "textmill_shard", "tokenizer", "--model-dir", str(folder)),
        *("--cache-dir", settings.conversion_cache),
        *(["--trust-remote-code"] if settings.trust_remote_code else []),
        *(["--json-output"] if settings.json_output else []),
    ]


def download_command(model_id: str, settings: Settings) -> list[str]:
    """Return the command line that fetches a hub model and prints its folder as its last line."""
    revision = [] if settings.revision is None else ["--revision", settings.revision]
    cache = [] if settings.huggingface_hub_cache is None else ["--cache-dir", settings.huggingface_hub_cache]
    code = ["--with-code"] if settings.trust_remote_code else []
    pickles = ["--or-pickled"] if settings.allow_pickle else []
    options = [*revision, *cache, *code, *pickles]
    return [sys.executable, "-m", "textmill_launcher.hub_download", "--model-id", model_id, *options]


def adapter_download_command(
    repository: str, revision: str | None, files: Sequence[str], settings: Settings
) -> list[str]:
    """Return the command line that fetches these files of a repository and prints their folder as its last line."""
    cache = [] if settings.huggingface_hub_cache is None else ["--cache-dir", settings.huggingface_hub_cache]
    return [
        *(sys.executable, "-m", "textmill_launcher.hub_download", "--model-id", repository),
        *([] if revision is None else ["--revision", revision]),
        *cache,
        *(word for name in files for word in ("--include", name)),
    ]


def download_environment(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the environment of the download, with the hub's token and with HF_HUB_OFFLINE as the user has set it."""
    token = {} if settings.hub_token is None else {"HF_TOKEN": settings.hub_token}
    return {**_without_secrets(environ), **_PLAIN_OUTPUT, **token}


def child_environment(environ: Mapping[str, str], settings: Settings, interface: str | None = None) -> dict[str, str]:
    """Return a child's environment, without secrets.

    The child writes output at once and never asks the hub. Where the package `kernels` is installed, transformers takes
    no kernels of the hub, not even those of an earlier download. Shards that meet on the loopback talk on the loopback
    only, and shards of several machines on the `interface`.
    """
    kept = {name: value for name, value in _without_secrets(environ).items() if name not in _PLACE_VARIABLES}
    return {
        **(_loopback_variables(settings.master_addr) if interface is None else _interface_variables(interface)),
        **kept,
        **_PLAIN_OUTPUT,
        "HF_HUB_OFFLINE": "1",
        "USE_HUB_KERNELS": "NO",
        "LOG_LEVEL": settings.log_level.lower(),
    }


def _loopback_variables(master_addr: str) -> dict[str, str]:
    """Return the variables that keep the libraries between ranks on the loopback, or none for another address.

    Without them gloo listens on the address that the machine's name has, which others may reach.
    """
    name = loopback_interface()
    if name is None or not is_loopback(master_addr):
        return {}
    return _interface_variables(name)


def _interface_variables(name: str) -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def router_environment(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the router's environment, which is that of a child and the keys that callers must show."""
    key = {"API_KEY": "\n".join(settings.api_key)} if settings.api_key else {}
    return {**child_environment(environ, settings), **key}


def _without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES}


def flags_of_all_nodes(settings: Settings) -> dict[str, str]:
    """Return the flags and values of the shards in which the nodes of one model must not differ."""
    words = [*_step_tokens(settings), *_forwarded(settings, Child.SHARD, leave_out=OF_ONE_MACHINE)]
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        if word.startswith("--"):
            flags[word] = "given" if following.startswith("--") else following
    return flags


def _step_tokens(settings: Settings) -> list[str]:
    """Return the flag that makes the shard's largest step fit the prefill budget. Hello tells the router that size.

    A size that the user gives is forwarded like any other value.
    """
    prefill_tokens = settings.max_batch_prefill_tokens
    if settings.max_step_tokens is not None:
        return []
    return [] if prefill_tokens is None else ["--max-step-tokens", str(prefill_tokens + DECODE_ROOM_TOKENS)]


def _adapter_memory(settings: Settings) -> list[str]:
    """Return the flag that lets a shard set memory aside where adapters are asked for and no size is given."""
    asks = bool(settings.lora_adapters) or settings.lora_runtime_updates
    return ["--lora-memory-bytes", "auto"] if asks and settings.lora_memory_bytes is None else []


def _model_flags(model: ModelFolder) -> list[str]:
    sha = [] if model.model_sha is None else ["--model-sha", model.model_sha]
    return ["--model-dir", str(model.path), "--model-id", model.model_id, *sha]


def _forwarded(settings: Settings, child: Child, leave_out: Collection[str] = ()) -> Iterator[str]:
    """Yield flags and values for a child. Unset options are left out, because their defaults belong to the child."""
    for option in OPTIONS:
        flag, value = option.flag_for(child), getattr(settings, option.name)
        if flag is None or value is None or option.name in leave_out:
            continue
        if option.is_switch:
            yield from [flag] if value else []
        elif isinstance(value, bool):
            yield from (flag, str(value).lower())
        elif isinstance(value, tuple):
            for item in value:
                yield from (flag, item)
        else:
            yield from (flag, str(value))
