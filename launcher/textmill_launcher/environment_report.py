"""Logs what the server runs on: versions, devices and limits (`--env`)."""

import logging
import os
import platform
import resource
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("textmill", "torch", "transformers", "tokenizers", "safetensors", "grpcio", "huggingface-hub")
DRIVER_TIMEOUT_S = 20.0

log = logging.getLogger(__name__)


def report_environment() -> None:
    """Write one log line about the software and the machine, and one for each GPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    log.info(
        "environment",
        extra={
            "python": platform.python_version(),
            "system": platform.platform(),
            "num_cores": os.cpu_count(),
            "open_files": f"{soft} of {hard}",
            **{package: installed_version(package) for package in PACKAGES},
        },
    )
    for line in driver_lines() or ["no driver of NVIDIA answers"]:
        log.info("devices: %s", line)


def installed_version(package: str) -> str:
    """Return the version of a package without importing the package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def driver_lines() -> list[str]:
    """Return a line for each GPU: name, driver, memory. Empty where `nvidia-smi` is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return []
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.splitlines()
