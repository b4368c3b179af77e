"""Measures the resident set of the shard, when ready and after a run, beside its weights and its KV pool, as JSON."""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from bench.dialects import GenerationWish, TgiDialect
from bench.machine import family
from bench.prompts import PromptMaker
from bench.servers import Server, free_port
from bench.traffic import closed_loop

START_TIMEOUT_S = 300.0
MIB = 1 << 20
AIM_MIB = 600  # the most that the shard should take beside weights and KV pool


def resident_mib(pid: int) -> float:
    """Return the MiB of the process's pages in memory, shared libraries included."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def shard_pid(launcher_pid: int) -> int:
    """Return the process id of the launcher's shard. Raises RuntimeError when there is none."""
    for pid in family(launcher_pid):
        if b"textmill_shard" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise RuntimeError("the launcher has no shard")


def run_load(url: str, model_dir: Path, seed: int) -> None:
    """Send prompts of 1,024 tokens, then 32 streams at once. Raises RuntimeError when a request fails."""
    maker = PromptMaker(model_dir, seed)
    for count, length, concurrency in ((2, 1024, 1), (64, 128, 32)):
        wishes = [GenerationWish(prompt, 64, ignore_eos=True) for prompt in maker.texts(count, length)]
        records = uvloop.run(closed_loop(url, TgiDialect(), wishes, concurrency=concurrency))
        failed = [record.error for record in records if record.error is not None]
        if failed:
            raise RuntimeError(failed[0])


def planned_bytes(log: str) -> dict[str, int]:
    """Return the numbers of bytes with which the shard planned its memory, as its log names them."""
    line = next(line for line in log.splitlines() if "memory planned" in line)
    return {name: int(value) for name, value in re.findall(r'(\w+_bytes)"?[=:] ?(\d+)', line)}


def main() -> None:
    """Start the launcher with the model, and print the sizes. The exit code is 1 when the aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-mib", type=int, default=160, help="small, so that the run touches all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="further arguments of the launcher, after --")
    given = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "launcher"), "--model-id", str(given.model), "--dtype", given.dtype]
    command += ["--hostname", "127.0.0.1", "--port", str(port), "--kv-cache-bytes", str(given.kv_mib * MIB)]
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        log_path = Path(folder) / "textmill.log"
        with Server([*command, *given.arguments], log_path) as server:
            server.wait_for_http(f"{url}/health", START_TIMEOUT_S)
            pid = shard_pid(server.pid)
            result: dict[str, Any] = {
                name: round(value / MIB, 1) for name, value in planned_bytes(log_path.read_text()).items()
            }
            result["rss_ready"] = round(resident_mib(pid), 1)
            run_load(url, given.model, given.seed)
            result["rss_after_run"] = round(resident_mib(pid), 1)
    beside = result["rss_after_run"] - result["weight_bytes"] - result["kv_bytes"]
    result |= {"beside_weights_and_kv": round(beside, 1), "aim": AIM_MIB}
    print(json.dumps({"mib": result}, indent=2))
    sys.exit(0 if beside <= AIM_MIB else 1)


if __name__ == "__main__":
    main()
