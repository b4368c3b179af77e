"""Compiles the native kernels once with the system compiler into a private cache, and loads them.

Nothing happens at import. Where the cache cannot be written, the library is compiled into a temporary folder at each
start, and a log line says so. Without a compiler, or when the compiler fails, there is one log line and no library, and
the callers use plain torch.
"""

import ctypes
import errno
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent
FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-D_GNU_SOURCE", "-fno-math-errno", "-Wno-psabi"),
    *("-fPIC", "-shared", "-fvisibility=hidden", "-pthread"),
)
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 120.0
# Why a file cannot be written; compilers tell these errors in words, which are English under LC_ALL=C.
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
CPU_INFO = Path("/proc/cpuinfo")


def load_library(
    cache_folder: Path, *, flags: tuple[str, ...] = FLAGS, cpu_info: Path = CPU_INFO
) -> ctypes.CDLL | None:
    """Return the library, from the cache or freshly compiled, or None where that fails. Calls release the GIL."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning("no C compiler found: native kernels are off", extra={"wanted": ", ".join(COMPILERS)})
        return None
    try:
        built = cache_folder / f"textmill-{_digest(compiler, flags, cpu_info)}.so"
        try:
            if not _is_ours(built):
                _compile(compiler, flags, built)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as error:
            if not _is_for_lack_of_a_place(error):
                raise
            return _load_from_temporary_folder(compiler, flags, built, error)
    except subprocess.CalledProcessError as error:
        log.warning("native kernels did not compile and are off", extra={"compiler": compiler, "error": _reason(error)})
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("native kernels cannot be built and are off", extra={"compiler": compiler, "error": str(error)})
    return None


def _load_from_temporary_folder(
    compiler: str, flags: tuple[str, ...], built: Path, error: OSError | subprocess.CalledProcessError
) -> ctypes.CDLL:
    """Return the library from a folder that goes at once; the library stays mapped into this process.

    `error` says why the cache cannot be used. Raises as `_compile`, and what the loader raises.
    """
    with tempfile.TemporaryDirectory(prefix="textmill-native-") as folder:
        fresh = Path(folder) / "native" / built.name
        _compile(compiler, flags, fresh)
        library = ctypes.CDLL(str(fresh))
    log.warning(
        "native kernels were compiled for this process alone, because no cache can be used: give --native-cache-dir",
        extra={"folder": str(built.parent), "error": _reason(error)},
    )
    return library


def _is_for_lack_of_a_place(error: OSError | subprocess.CalledProcessError) -> bool:
    """Whether the cache's folder is to blame, and neither the compiler nor the source."""
    if isinstance(error, subprocess.CalledProcessError):
        return any(os.strerror(number) in _reason(error) for number in _NO_PLACE)
    return True


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return "; ".join(error.stderr.decode(errors="replace").strip().splitlines()[:3])
    return str(error)


def _digest(compiler: str, flags: tuple[str, ...], cpu_info: Path) -> str:
    """Return a digest of all that the machine code depends on: sources, compiler, flags and the processor."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted([*SOURCE_FOLDER.glob("*.c"), *SOURCE_FOLDER.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_TIMEOUT_S)
    digest.update(version.stdout + "\0".join((compiler, *flags)).encode() + _processor(cpu_info).encode())
    return digest.hexdigest()


def _processor(cpu_info: Path) -> str:
    """Return the features of the processor, because other machines may read a cache on a shared home folder."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _is_ours(built: Path) -> bool:
    """Whether this user has written the library and nobody else can write it. No other library is loaded."""
    try:
        status = built.stat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _compile(compiler: str, flags: tuple[str, ...], built: Path) -> None:
    """Compile under another name and rename the library, because two processes may compile at once."""
    built.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    built.parent.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        fresh = Path(folder) / built.name
        source = SOURCE_FOLDER / "textmill.c"
        subprocess.run(
            [compiler, *flags, "-o", str(fresh), str(source), "-lm"],
            capture_output=True,
            check=True,
            timeout=COMPILE_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
        fresh.chmod(0o700)
        fresh.replace(built)
