"""Looks at the machine: devices, torch, compiler, memory, disk, limits, ports."""

import importlib.util
import os
import re
import resource
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from textmill_launcher.devices import count_visible, hides_all, num_shards
from textmill_launcher.doctor.finding import Finding, failure, ok, warning
from textmill_launcher.environment_report import driver_lines
from textmill_launcher.errors import ConflictingSettings
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.plan.machine import cgroup_limit_bytes, ram_bytes
from textmill_launcher.plan.report import size
from textmill_launcher.ports import why_taken
from textmill_launcher.settings import NODE_PORT, Settings

GIB = 1024**3
LEAST_SHM_BYTES = {False: GIB // 16, True: GIB}  # by whether ranks share the machine
# The oldest driver, by its first number, that runs programs of a CUDA of this first number: NVIDIA's CUDA compatibility
# guide, "minor version compatibility".
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
FILES_OF_A_REQUEST = 2  # the connection, and what else a call may open
SPARE_FILES = 256
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "grpcio", "starlette", "uvicorn", "llguidance")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOADED_DRIVER = Path("/proc/driver/nvidia/version")


def check_machine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found, the most important first."""
    yield from _packages()
    yield from _devices(settings)
    yield _compiler(settings)
    yield _memory()
    yield _shared_memory(settings)
    yield _cpu_quota()
    yield _open_files(settings)
    yield from _ports(settings)


def _packages() -> Iterator[Finding]:
    missing = []
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        to_do = "install them: pip install -c constraints.txt -e '.[router,shard]'"
        yield failure("packages", f"missing: {', '.join(missing)}", to_do, ExitCode.OTHER)
    else:
        yield ok("packages", ", ".join(f"{package} {version(package)}" for package in PACKAGES))


def torch_build() -> tuple[str, str | None] | None:
    """Return torch's version and the version of CUDA that it was built for, from its files. None: not installed."""
    spec = importlib.util.find_spec("torch")  # which does not import torch
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        file = Path(folder) / "version.py"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            name = re.search(r"__version__ = ['\"]([^'\"]+)", text)
            cuda = re.search(r"^cuda.*= ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
            return (name[1] if name else "unknown"), (cuda[1] if cuda else None)
    return None


def _devices(settings: Settings) -> Iterator[Finding]:
    lines, build = driver_lines(), torch_build()
    for line in lines:
        yield ok("device", line)
    if not lines and settings.device != "cpu" and _LOADED_DRIVER.is_file():
        to_do = "give the container the capability `utility` (NVIDIA_DRIVER_CAPABILITIES), which brings nvidia-smi"
        yield warning("device", "NVIDIA's driver is loaded and nvidia-smi does not answer: GPUs are not counted", to_do)
    elif not lines and settings.device == "cuda":
        to_do = "install NVIDIA's driver, give the container its GPUs, or take --device cpu"
        yield failure("device", "no GPU answers (nvidia-smi)", to_do, ExitCode.WRONG_SETTING)
    elif not lines:
        yield ok("device", "no GPU answers: shards compute on the CPU")
    if build is not None and lines and build[1] is None and settings.device != "cpu":
        state = failure if settings.device == "cuda" else _as_warning
        to_do = "install a build of torch for CUDA (see deploy/Dockerfile)"
        yield state("torch", f"{build[0]} is a build without CUDA", to_do, ExitCode.WRONG_SETTING)
    elif build is not None:
        yield ok("torch", f"{build[0]}, " + (f"for CUDA {build[1]}" if build[1] else "for CPUs"))
    if lines and settings.device != "cpu":
        if build is not None and build[1] is not None:
            yield from _driver(lines[0], build[0], build[1])
        yield from _number_of_devices(settings, len(lines))


def _driver(line: str, torch: str, cuda: str) -> Iterator[Finding]:
    """Look whether the driver, the third word of a line of `driver_lines`, is new enough for the build of torch."""
    words = [word.strip() for word in line.split(",")]
    driver = words[2] if len(words) > 2 else ""
    first, least = re.match(r"\d+", driver), LEAST_DRIVERS.get(int(cuda.partition(".")[0]))
    if first is not None and least is not None and int(first[0]) < least:
        yield warning(
            "driver",
            f"{driver} is older than torch {torch} for CUDA {cuda} asks for ({least}), so that torch may see no GPU",
            "a newer driver, a build of torch for an older CUDA, or NVIDIA's package cuda-compat",
        )


def _number_of_devices(settings: Settings, num_gpus: int) -> Iterator[Finding]:
    """Compare the GPUs that CUDA shows with those that the shards of all replicas take."""
    to_do = "fewer shards (--num-shard, --num-replicas), more devices (CUDA_VISIBLE_DEVICES), or --device cpu"
    try:
        listed = count_visible(settings.visible_devices, lambda: num_gpus)
        num_wanted = num_shards(settings, lambda: num_gpus) * settings.num_replicas
    except ConflictingSettings as error:
        yield failure("device", str(error), "change what the message names", ExitCode.WRONG_SETTING)
        return
    num_shown = 0 if hides_all(settings.visible_devices) else num_gpus if listed is None else min(num_gpus, listed)
    if num_wanted > num_shown and (num_shown or settings.device == "cuda"):  # else the shards take the CPU
        found = f"{num_shown} GPUs for {num_wanted} shards"
        yield failure("device", found, to_do, ExitCode.WRONG_SETTING)


def _as_warning(subject: str, found: str, to_do: str, code: ExitCode) -> Finding:
    return warning(subject, found, to_do)


def _compiler(settings: Settings) -> Finding:
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if settings.device != "cpu" and settings.attention_backend != "reference" and driver_lines():
        return _compiler_of_triton(Path(sysconfig.get_path("include")) / "Python.h")
    if settings.no_native_kernels:
        return ok("compiler", "not needed with --no-native-kernels")
    if found is None:
        return warning("compiler", "no cc, gcc or clang: a CPU computes more slowly", "install gcc and libc6-dev")
    return ok("compiler", str(shutil.which(found)))


def _compiler_of_triton(header: Path) -> Finding:
    """Look for what Triton takes at run time on a GPU: the compiler of CC, gcc or clang, and the headers of Python."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        missing, to_do = "no gcc, no clang and no variable CC", "install gcc and libc6-dev"
    elif not header.is_file():
        missing, to_do = f"no {header}", "install python3-dev"
    else:
        return ok("compiler", f"{found}, {header}")
    return warning("compiler", f"{missing}: Triton has no kernels, and the GPU computes slowly", to_do)


def _memory() -> Finding:
    limit = cgroup_limit_bytes()
    whole = size(ram_bytes())
    return ok("memory", whole if limit is None else f"{whole}, limited by the container")


def _num_shards(settings: Settings) -> int:
    """Return the shards of each replica on this machine, 1 where the settings contradict themselves."""
    try:
        return num_shards(settings, lambda: len(driver_lines()))
    except ConflictingSettings:
        return 1


def _shared_memory(settings: Settings) -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return warning("/dev/shm", "not there", "mount it: several shards exchange tensors there")
    usage = shutil.disk_usage(folder)
    least = LEAST_SHM_BYTES[_num_shards(settings) > 1]
    if usage.free < least:
        to_do = f"enlarge it to {size(least)} or more (docker run --shm-size)"
        return warning("/dev/shm", f"{size(usage.free)} free of {size(usage.total)}", to_do)
    return ok("/dev/shm", f"{size(usage.free)} free of {size(usage.total)}")


def _cpu_quota() -> Finding:
    cores = os.cpu_count() or 1
    try:
        quota, _, period = _CPU_QUOTA.read_text(encoding="ascii").strip().partition(" ")
        share = None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        share = None
    if share is not None and share < 1:
        return warning("cores", f"the container gets {share:.1f} of {cores} cores", "raise the limit of CPU")
    return ok("cores", str(cores) if share is None else f"{share:.1f} of {cores}, limited by the container")


def _open_files(settings: Settings) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = SPARE_FILES + FILES_OF_A_REQUEST * (settings.max_concurrent_requests or 128)
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warning("open files", f"at most {soft}, calls may need {needed}", f"ulimit -n {max(needed, 4096)}")
    return ok("open files", f"at most {soft} ({hard} hard)")


def _ports(settings: Settings) -> Iterator[Finding]:
    yield port_finding("port", settings.hostname, settings.port, "--port")
    if settings.num_nodes > 1 and settings.node_rank == 0:
        port = settings.master_port or NODE_PORT
        yield port_finding("port of the nodes", settings.master_addr, port, "--master-addr or --master-port")
    elif settings.num_nodes == 1 and settings.master_port is not None and _num_shards(settings) > 1:
        yield port_finding("port of the ranks", settings.master_addr, settings.master_port, "--master-port")


def port_finding(subject: str, host: str, port: int, flag: str) -> Finding:
    """Say whether a port is free."""
    reason = why_taken(host, port)
    if reason is not None:
        return failure(subject, f"{host}:{port}: {reason}", f"another {flag}", ExitCode.PORT_TAKEN)
    return ok(subject, f"{host}:{port} is free")
