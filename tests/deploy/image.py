"""Builds `deploy/Dockerfile.cpu` without a container engine and asks the image a question: `make image-test`, as root.

The base is a small Debian made by debootstrap, because no registry is asked. buildah builds with chroot isolation. The
image runs with a read-only root, under a user id that no password file knows, in group 0, with tmpfs at HOME and /tmp.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from textmill_launcher.model_files import find_demo_file

from tests.deploy.pip_settings import PipSettings, pip_settings

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("buildah", "debootstrap")
SUITE = "bookworm"
DEBIAN = "http://deb.debian.org/debian"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
USER_ID = 1_000_790_000  # as OpenShift gives them out
BUILD_LIMIT_S = 1200
START_LIMIT_S = 180
STOP_LIMIT_S = 30
KV_BYTES = 256 * 16 * 46_080  # 4,096 tokens of the demo model in fp32


def main() -> None:
    """Exit with an exception at the first step that fails; each step says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="where the base and the image are kept; without it they are removed"
    )
    folder = parser.parse_args().folder
    if os.getuid() != 0:
        raise SystemExit("image-test: needs root, for debootstrap, buildah and a root file system of its own")
    install_tools()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        test_image(folder)
        return
    with tempfile.TemporaryDirectory(prefix="textmill-image-") as made:
        test_image(Path(made))


def install_tools() -> None:
    """Install what is missing by apt."""
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if missing:
        run("apt", ["apt-get", "install", "--yes", "--no-install-recommends", *missing])


def test_image(folder: Path) -> None:
    """Build the base, then the image, then run the image and ask it."""
    buildah = [
        "buildah",
        "--root",
        str(folder / "storage"),
        "--runroot",
        str(folder / "run"),
        "--storage-driver",
        "vfs",
    ]
    make_base(folder, buildah)
    build(folder, buildah)
    [container] = output([*buildah, "from", "--pull-never", "textmill:cpu"]).splitlines()
    try:
        root = Path(output([*buildah, "mount", container]).strip())
        facts = json.loads(output([*buildah, "inspect", "--type", "image", "textmill:cpu"]))["Docker"]["config"]
        check_facts(facts)
        check_bytecode(root)
        ask(root, facts, folder)
    finally:
        run("remove", [*buildah, "rm", container])


def make_base(folder: Path, buildah: Sequence[str]) -> None:
    """Make the image `base` of a Debian with Python, once for a folder."""
    if output([*buildah, "images", "--quiet", "--filter", "reference=base"]).strip():
        return
    system = folder / "debian"
    run("debootstrap", ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, str(system), DEBIAN])
    (folder / "Containerfile.base").write_text("FROM scratch\nCOPY . /\n")
    run("base", [*buildah, "bud", "--tag", "base", "--file", str(folder / "Containerfile.base"), str(system)])
    shutil.rmtree(system)


def build(folder: Path, buildah: Sequence[str]) -> None:
    """Build the image `textmill:cpu` as `docker build` would, with the package index of this machine's pip."""
    settings: PipSettings = pip_settings()
    (folder / "pip.conf").write_text(settings.text)
    volumes = [part for path in settings.paths for part in ("--volume", f"{path}:{path}:ro")]
    if settings.certificates is not None:
        volumes += ["--volume", f"{settings.certificates}:{PipSettings.CERTIFICATES_INSIDE}:ro"]
    run(
        "build",
        [
            *(*buildah, "bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker"),
            *("--build-arg", "BASE=localhost/base", "--build-arg", f"TORCH_INDEX={settings.index}"),
            *("--secret", f"id=pip,src={folder / 'pip.conf'}", *volumes),
            *("--tag", "textmill:cpu", "--file", str(REPOSITORY / "deploy/Dockerfile.cpu"), str(REPOSITORY)),
        ],
    )


def check_facts(facts: dict[str, object]) -> None:
    """The image says who it is, runs as nobody special, and can be asked for its health."""
    labels = facts["Labels"]
    assert isinstance(labels, dict)
    for name in ("title", "version", "revision", "source", "licenses"):
        assert labels.get(f"org.opencontainers.image.{name}"), name
    assert facts["User"] == "10001:0", facts["User"]
    assert facts["Entrypoint"] == ["launcher"]
    assert facts.get("Healthcheck"), "the image has no HEALTHCHECK"


def check_bytecode(root: Path) -> None:
    """Each module of the installed packages is compiled: a read-only root never gets its bytecode back."""
    modules = list((root / "opt/textmill/lib").glob("python3*/site-packages/textmill_*/**/*.py"))
    missing = [path for path in modules if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    assert len(modules) > 100, len(modules)
    assert not missing, missing[:5]
    assert not (root / "src").exists(), "the sources of the build are in the image"


def ask(root: Path, facts: dict[str, object], folder: Path) -> None:
    """Start the image's command in its own file system, ask it, run its health check, end it."""
    port = free_port()
    environ = facts["Env"]
    entrypoint = facts["Entrypoint"]
    assert isinstance(environ, list)
    assert isinstance(entrypoint, list)
    variables = {**dict(str(entry).split("=", 1) for entry in environ), "PORT": str(port)}
    arguments = ["--hostname", "127.0.0.1", "--model-id", "/models/demo.gguf", "--kv-cache-bytes", str(KV_BYTES)]
    log_file = folder / "server.log"
    began_s = time.monotonic()
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            in_container(root, variables, [*map(str, entrypoint), *arguments]), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not is_healthy(url):
            assert server.poll() is None, f"the server ended with {server.returncode}:\n{log_file.read_text()}"
            assert time.monotonic() - began_s < START_LIMIT_S, log_file.read_text()
            time.sleep(0.1)
        print(f"image-test: ready after {time.monotonic() - began_s:.1f} s", flush=True)
        body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8, "do_sample": False}}
        answer = httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["generated_text"], answer.text
        healthcheck = facts["Healthcheck"]
        assert isinstance(healthcheck, dict)
        kind, *check = healthcheck["Test"]
        assert kind == "CMD", "the health check needs no shell"
        run("healthcheck", in_container(root, variables, check))
        assert "native kernels" not in log_file.read_text(), log_file.read_text()  # said when they cannot be built
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        code = server.wait(STOP_LIMIT_S)
    assert code == 0, f"the server ended with {code}:\n{log_file.read_text()}"
    without_home = {name: value for name, value in variables.items() if name not in ("HOME", "USER")}
    refused = subprocess.run(
        in_container(root, without_home, list(map(str, entrypoint))), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr, refused.stderr
    assert "set HOME" in refused.stderr, refused.stderr


def in_container(root: Path, variables: dict[str, str], command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` inside `root`: what a runtime does, by mounts and setpriv alone."""
    home = variables.get("HOME", "/home/textmill")
    prepare = [
        "mount --make-rprivate /",
        f"mount --bind {root} {root}",
        f"mkdir -p {root}/models {root}/proc {root}/dev",
        f"touch {root}/models/demo.gguf",
        f"mount --bind {find_demo_file()} {root}/models/demo.gguf",
        f"mount -o remount,bind,ro {root}/models/demo.gguf",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount -t tmpfs -o mode=0770,gid=0 tmpfs {root}{home}",
        f"mount -o remount,bind,ro {root}",
    ]
    become = f"exec chroot {root} setpriv --reuid {USER_ID} --regid 0 --clear-groups --no-new-privs"
    become += ' --bounding-set=-all --inh-caps=-all env -i "$@"'
    values = [f"{name}={value}" for name, value in variables.items()]
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*prepare, become]), "sh", *values, *command]


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(what: str, command: Sequence[str]) -> None:
    """Run a command to its end, show its output only when it fails, say how long it took."""
    began_s = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_LIMIT_S, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode(errors="replace")[-8000:])
        raise SystemExit(f"image-test: {what} ended with {done.returncode}")
    print(f"image-test: {what}, {time.monotonic() - began_s:.1f} s", flush=True)


def output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=True).stdout


if __name__ == "__main__":
    main()
