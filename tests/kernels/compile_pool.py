"""Compiles many variants beside each other, and remembers what they took for as long as their sources stay the same."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from textmill_shard.triton_kernels.constants import COMPILE_OPTIONS
from textmill_shard.triton_kernels.variants import VARIANTS

from tests.kernels.compile_variant import DEVICE_FOLDER, KERNEL_FILES, Job, Usage

COMPILE_LIMIT_S = 900
JOBS_KEPT = 24  # compiled variants that are remembered together, so that little is lost when a run is cut off
_CHILD = Path(__file__).with_name("compile_variant.py")
_REPOSITORY = Path(__file__).parents[2]


def memory_folder() -> Path:
    """Return the folder in the user's cache in which runs remember what variants take."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "kernels"


def compile_all(jobs: Sequence[Job], *, num_processes: int) -> list[Usage]:
    """Compile variants for targets in so many processes. The usages come in the order of the jobs."""
    parts = [part for start in range(num_processes) if (part := jobs[start::num_processes])]
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(max(1, len(parts))) as pool:
        found = [usage for usages in pool.map(lambda part: _compile_part(part, cache), parts) for usage in usages]
    by_job = {(usage.variant, usage.target): usage for usage in found}
    return [by_job[job] for job in jobs]


def compile_remembered(jobs: Sequence[Job], *, num_processes: int, memory: Path) -> list[Usage]:
    """Compile only what no file of `memory` knows. The files have the digest of the sources in their names."""
    known = {job: memory / f"{source_digest(job)}.json" for job in jobs}
    missing = [job for job, file in known.items() if not file.exists()]
    memory.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), JOBS_KEPT):
        for usage in compile_all(missing[start : start + JOBS_KEPT], num_processes=num_processes):
            known[usage.variant, usage.target].write_text(json.dumps(asdict(usage)))
    return [Usage(**{**json.loads(file.read_text()), "variant": job[0]}) for job, file in known.items()]


def source_digest(job: Job) -> str:
    """Return a digest of all on which the machine code depends: compiler, target, constants and sources."""
    variant, target = VARIANTS[job[0]], job[1]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{version('triton')} {target} {variant!r} {COMPILE_OPTIONS}".encode())
    for source in (*_kernel_sources(KERNEL_FILES[variant.kernel]), _CHILD):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _kernel_sources(name: str) -> list[Path]:
    """Return a file of kernels, and the other files of its folder whose functions the kernels call."""
    file = DEVICE_FOLDER / f"{name}.py"
    used = re.findall(r"^from textmill_shard\.triton_kernels\.device\.(\w+) import", file.read_text(), re.MULTILINE)
    return [file, *(source for other in used for source in _kernel_sources(other))]


def _compile_part(jobs: Sequence[Job], cache: str) -> list[Usage]:
    """Compile in a process without the interpreter. Raises RuntimeError with the compiler's words."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_variant"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=COMPILE_LIMIT_S,
        check=False,
        cwd=_REPOSITORY,
        env={**environ, "TRITON_CACHE_DIR": cache},
    )
    if done.returncode:
        raise RuntimeError(f"a variant of {[VARIANTS[number].name for number, _ in jobs]} fails:\n{done.stderr}")
    return [Usage(**json.loads(line)) for line in done.stdout.splitlines()]
