"""Runs an unpacked image as a container runtime does, by mounts, chroot and setpriv alone, and asks the server in it.

The root is read-only, the user id is one that no password file knows, in group 0 and without any capability; HOME and
/tmp are tmpfs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from textmill_launcher.model_files import find_demo_file
from textmill_launcher.settings import load_settings

from tests.deploy.manifests import DEPLOY, load, overlay_folders, settings_of

USER_ID = 1_000_790_000  # as OpenShift gives them out
HOME = "/home/textmill"
START_LIMIT_S = 300  # a loaded machine compiles slowly
STOP_LIMIT_S = 30
CALL_LIMIT_S = 60
CONVERT_LIMIT_S = 240
KV_BYTES = 256 * 16 * 46_080  # 4,096 tokens of the demo model in fp32
REVISION = "0" * 40
BODY = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8, "do_sample": False}}


def answer_from_gguf(root: Path, facts: Mapping[str, Any], folder: Path) -> None:
    """The image's own command serves a GGUF file, which it converts into HOME, and the image's health check passes."""
    mounts = {find_demo_file(): "/models/demo.gguf"}
    variables = variables_of(facts) | {"PORT": str(free_port()), "HOSTNAME": "127.0.0.1"}
    command = [*facts["Entrypoint"], "--model-id", "/models/demo.gguf", "--kv-cache-bytes", str(KV_BYTES)]
    with serving(inside(root, mounts, variables, command), variables, folder / "gguf.log") as url:
        answer = httpx.post(f"{url}/generate", json=BODY, timeout=CALL_LIMIT_S, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["generated_text"], answer.text
        kind, *check = facts["Healthcheck"]["Test"]
        assert kind == "CMD", "the health check needs no shell"
        subprocess.run(inside(root, mounts, variables, check), check=True, timeout=CALL_LIMIT_S)
    assert "native kernels" not in (folder / "gguf.log").read_text()  # said when they cannot be built


def answer_as_in_kubernetes(root: Path, facts: Mapping[str, Any], folder: Path) -> None:
    """Variables of the base and flags of the overlay `cpu` serve a hub model from a read-only volume, offline."""
    settings = settings_of(DEPLOY / "kubernetes/base")
    [patch] = load(overlay_folders()["cpu"] / "deployment.yaml")
    flags = patch["spec"]["template"]["spec"]["containers"][0]["args"]
    mounts = {hub_folder(folder, settings["MODEL_ID"]): settings["HUGGINGFACE_HUB_CACHE"]}
    # The port, the address and the size are those of a shared machine.
    here = {"PORT": str(free_port()), "HOSTNAME": "127.0.0.1", "KV_CACHE_BYTES": str(KV_BYTES), "API_KEY": "k"}
    variables = variables_of(facts) | settings | here
    with serving(
        inside(root, mounts, variables, [*facts["Entrypoint"], *flags]), variables, folder / "kubernetes.log"
    ) as url:
        assert httpx.post(f"{url}/generate", json=BODY, timeout=CALL_LIMIT_S, trust_env=False).status_code == 401
        headers = {"authorization": "Bearer k"}
        answer = httpx.post(f"{url}/generate", json=BODY, headers=headers, timeout=CALL_LIMIT_S, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["generated_text"], answer.text
        info = httpx.get(f"{url}/info", headers=headers, timeout=CALL_LIMIT_S, trust_env=False).json()
        assert (info["model_id"], info["model_sha"]) == (settings["MODEL_ID"], REVISION)


def refuse_without_home(root: Path, facts: Mapping[str, Any]) -> None:
    """A user id without HOME and without an entry in the password file reads a sentence and no traceback."""
    variables = {name: value for name, value in variables_of(facts).items() if name not in ("HOME", "USER")}
    refused = subprocess.run(
        inside(root, {}, variables, facts["Entrypoint"]),
        capture_output=True,
        text=True,
        timeout=CALL_LIMIT_S,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr
    assert "set HOME" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr, refused.stderr


def variables_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that the image asks for."""
    return dict(entry.split("=", 1) for entry in facts["Env"])


def inside(root: Path, mounts: Mapping[Path, str], variables: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` inside of `root`. `mounts` lead to paths there, read-only."""
    prepare = ["mount --make-rprivate /", f"mount --bind {root} {root}"]
    for source, target in mounts.items():
        make = f"mkdir -p {root}{target}" if source.is_dir() else f"touch {root}{target}"
        prepare += [make, f"mount --bind {source} {root}{target}", f"mount -o remount,bind,ro {root}{target}"]
    prepare += [
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount -t tmpfs -o mode=0770,gid=0 tmpfs {root}{HOME}",
        f"mount -o remount,bind,ro {root}",
    ]
    become = (
        f"exec chroot {root} setpriv --reuid {USER_ID} --regid 0 --clear-groups --no-new-privs"
        ' --bounding-set=-all --inh-caps=-all env -i "$@"'
    )
    values = [f"{name}={value}" for name, value in variables.items()]
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*prepare, become]), "sh", *values, *command]


@contextlib.contextmanager
def serving(command: Sequence[str], variables: Mapping[str, str], log_file: Path) -> Iterator[str]:
    """Start a server and give its address once it is ready; end it by SIGTERM, upon which it has to exit with 0."""
    url = f"http://127.0.0.1:{variables['PORT']}"
    began_s = time.monotonic()
    with log_file.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not is_healthy(url):
            assert server.poll() is None, f"the server ended with {server.returncode}:\n{log_file.read_text()}"
            assert time.monotonic() - began_s < START_LIMIT_S, log_file.read_text()
            time.sleep(0.1)
        print(f"image-test: {log_file.stem}, ready after {time.monotonic() - began_s:.1f} s", flush=True)
        yield url
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        code = server.wait(STOP_LIMIT_S)
    assert code == 0, f"the server ended with {code}:\n{log_file.read_text()}"


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hub_folder(folder: Path, model_id: str) -> Path:
    """Return a folder that holds the demo model as the hub's client would have left it there, readable by everybody."""
    cache = load_settings([], os.environ).conversion_cache
    command = [sys.executable, "-m", "textmill_shard", "convert", "--gguf", str(find_demo_file()), "--cache-dir", cache]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_LIMIT_S, check=True)
    hub = folder / "hub"
    model = hub / f"models--{model_id.replace('/', '--')}"
    if not hub.exists():
        shutil.copytree(Path(done.stdout.splitlines()[-1]), model / "snapshots" / REVISION)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(REVISION)
        for path in (hub, *hub.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return hub
