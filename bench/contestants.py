"""The servers of the comparison: the command of each on the CPU, the path that says it is ready, and its dialect."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.dialects import Dialect, OpenAiDialect, TgiDialect

MAX_CONTEXT_TOKENS = 4096  # of one request, for a peer that has to be told


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server. `environment` is added to the environment of this process."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    dialect: Dialect
    environment: dict[str, str]


def textmill(arguments: argparse.Namespace, port: int) -> Contestant:
    """Return our launcher, from the Python environment that runs this program."""
    command = [
        *(str(Path(sys.executable).parent / "launcher"), "--model-id", str(arguments.model)),
        *("--hostname", "127.0.0.1", "--port", str(port), "--dtype", arguments.dtype),
        *arguments.launcher_args,
    ]
    return Contestant("textmill", tuple(command), "/health", TgiDialect(), {})


def transformers_serve(arguments: argparse.Namespace, port: int) -> Contestant:
    """Return `transformers serve` with continuous batching."""
    command = [
        *(str(arguments.transformers_venv / "bin" / "transformers"), "serve", str(arguments.model)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", arguments.dtype),
        "--continuous-batching",
    ]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
    dialect = OpenAiDialect(str(arguments.model), knows_ignore_eos=False)
    return Contestant("transformers", tuple(command), "/health", dialect, environment)


def vllm(arguments: argparse.Namespace, port: int) -> Contestant:
    """Return vLLM's CPU build on all cores. By default vLLM keeps one core free."""
    command = [
        *(str(arguments.vllm_venv / "bin" / "vllm"), "serve", str(arguments.model), "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", arguments.dtype),
        *("--max-model-len", str(MAX_CONTEXT_TOKENS), "--max-num-seqs", "64"),
    ]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Contestant("vllm", tuple(command), "/health", OpenAiDialect("m"), environment)


def llama_server(arguments: argparse.Namespace, port: int) -> Contestant:
    """Return llama.cpp's server on a GGUF file of the same weights."""
    threads = str(arguments.threads)
    command = [
        *(str(arguments.llama_server), "-m", str(arguments.llama_gguf), "--alias", "m", "--no-webui"),
        *("--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads, "-np", "32", "-c", "65536"),
    ]
    return Contestant("llama.cpp", tuple(command), "/health", OpenAiDialect("m"), {})


def chosen(arguments: argparse.Namespace) -> list[Callable[[argparse.Namespace, int], Contestant]]:
    """Return our server first, then the peers that the flags name."""
    peers = [
        (transformers_serve, arguments.transformers_venv),
        (vllm, arguments.vllm_venv),
        (llama_server, arguments.llama_server),
    ]
    return [textmill, *(make for make, place in peers if place is not None)]
