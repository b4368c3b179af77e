"""Builds `deploy/Dockerfile.cpu` without a container engine and asks the image a question: `make image-test`, as root.

The base is a small Debian made by debootstrap, because no registry is asked. buildah builds with chroot isolation.
`container_run.py` starts the image.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.deploy import container_run
from tests.deploy.pip_settings import PipSettings, pip_settings

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("buildah", "debootstrap")
SUITE = "bookworm"
DEBIAN = "http://deb.debian.org/debian"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
BUILD_LIMIT_S = 1200


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
        run("package lists", ["apt-get", "update"])
        run("apt", ["apt-get", "install", "--yes", "--no-install-recommends", *missing])


def test_image(folder: Path) -> None:
    """Build the base, then the image, then run the image and ask it."""
    storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
    buildah = ["buildah", *storage]
    make_base(folder, buildah)
    build(folder, buildah)
    [container] = output([*buildah, "from", "--pull-never", "textmill:cpu"]).splitlines()
    try:
        root = Path(output([*buildah, "mount", container]).strip())
        facts = json.loads(output([*buildah, "inspect", "--type", "image", "textmill:cpu"]))["Docker"]["config"]
        check_facts(facts)
        check_bytecode(root)
        container_run.answer_from_gguf(root, facts, folder)
        container_run.answer_as_in_kubernetes(root, facts, folder)
        container_run.refuse_without_home(root, facts)
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
