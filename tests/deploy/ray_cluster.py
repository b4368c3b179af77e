"""A Ray cluster of one machine with Serve on a free port, which runs the command of docs/deploy.md."""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.deploy.manifests import REPOSITORY
from tests.fakes.processes import free_port, wait_until

VENV = REPOSITORY / ".venv-ray"
START_LIMIT_S = 240  # a loaded machine starts Ray and two servers slowly
STOP_LIMIT_S = 40
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class RunningServe:
    """The application behind Serve's proxy, and the processes of the cluster."""

    base_url: str
    log_file: Path
    head: "subprocess.Popen[bytes]"

    @property
    def log_text(self) -> str:
        """What `serve run` has written, with the logs of the replicas."""
        return self.log_file.read_text()

    def processes(self, word: str) -> list[psutil.Process]:
        """Return the cluster's living processes whose command line has the word."""
        return [process for process in living(psutil.Process(self.head.pid)) if word in " ".join(_command(process))]

    def launchers(self) -> list[psutil.Process]:
        """Return the launchers of all replicas."""
        return [process for process in self.processes("--num-shard") if _command(process)[1].endswith("launcher")]

    def launcher_urls(self) -> dict[int, str]:
        """Return the address of each launcher by its process id."""
        return {
            process.pid: f"http://{HOST}:{command[command.index('--port') + 1]}"
            for process in self.launchers()
            if (command := _command(process))
        }

    def num_ready(self) -> int:
        """Return how many launchers serve."""
        return sum(_is_ready(url) for url in self.launcher_urls().values())


@contextmanager
def running_serve(command: str, folder: Path, environ: Mapping[str, str]) -> Iterator[RunningServe]:
    """Start Ray, Serve and the application; end all of them when the block is left, and fail if a process stays."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because Ray puts sockets there
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = [str(VENV / "bin"), str(Path(sys.executable).parent), kept["PATH"]]
    environ = {
        **kept,
        "PATH": os.pathsep.join(paths),
        "RAY_TMPDIR": str(home),
        "TMPDIR": str(home),  # a launcher that is killed leaves the folder of its sockets there
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **environ,
    }
    port, gcs_port = free_port(), free_port()
    start = (
        f"ray start --head --block --node-ip-address {HOST} --port {gcs_port} --include-dashboard=false --num-cpus 8"
    )
    with (folder / "head.log").open("wb") as head_log, (folder / "serve.log").open("wb") as serve_log:
        head = subprocess.Popen(shlex.split(start), env=environ, stdout=head_log, stderr=subprocess.STDOUT)
        members: list[psutil.Process] = []
        try:
            log_text = lambda: (folder / "head.log").read_text()  # noqa: E731
            wait_until(lambda: "runtime started" in log_text(), START_LIMIT_S, "Ray runs", log_text)
            environ["RAY_ADDRESS"] = f"{HOST}:{gcs_port}"
            listen = f"serve start --http-host {HOST} --http-port {port}"
            subprocess.run(shlex.split(listen), env=environ, check=True, timeout=START_LIMIT_S, capture_output=True)
            application = subprocess.Popen(
                shlex.split(command),
                env=environ,
                cwd=REPOSITORY,
                stdout=serve_log,
                stderr=subprocess.STDOUT,
            )
            serve = RunningServe(f"http://{HOST}:{port}", folder / "serve.log", head)
            try:
                wait_until(lambda: _is_ready(serve.base_url), START_LIMIT_S, "Serve answers", lambda: serve.log_text)
                yield serve
            finally:
                members = living(psutil.Process(head.pid))
                application.send_signal(signal.SIGINT)
                application.wait(STOP_LIMIT_S)
                left = serve.launchers()
        finally:
            members += living(psutil.Process(head.pid))
            head.terminate()
            head.wait(STOP_LIMIT_S)
            _, staying = psutil.wait_procs(members, STOP_LIMIT_S)
            for process in staying:
                process.kill()
            shutil.rmtree(home)
    assert left == [], "Serve's end leaves launchers behind"
    assert staying == [], "the end of Ray leaves processes behind"


def living(process: psutil.Process) -> list[psutil.Process]:
    """Return the living descendants of a process."""
    return [child for child in process.children(recursive=True) if _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
