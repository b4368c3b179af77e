"""Rooms meet on the wire only: no imports between them, no torch outside the shard, nothing happens on import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOMS = {room: REPOSITORY / room / f"textmill_{room}" for room in ("proto", "router", "launcher", "shard")}
TORCH_FREE = ("proto", "router", "launcher")

# Imports each module of a room and reports what happened on the way and which modules came with it. The libraries of
# the shard are imported first: what they do to the environment is not ours.
PROBE = """
import importlib, logging, os, signal, sys, threading
names = sys.argv[1:]
if any(name.startswith("textmill_shard") for name in names):
    import torch.distributed, transformers.modeling_utils
handlers = lambda: {n: list(l.handlers) for n, l in logging.root.manager.loggerDict.items()
                    if n.startswith("textmill") and isinstance(l, logging.Logger)}
before = (dict(os.environ), os.getcwd(), list(logging.root.handlers), threading.active_count(), os.listdir("."),
          signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
for name in names:
    importlib.import_module(name)
after = (dict(os.environ), os.getcwd(), list(logging.root.handlers), threading.active_count(), os.listdir("."),
         signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
what = ("environment", "working folder", "root log handlers", "threads", "files", "SIGTERM handler", "SIGINT handler")
changed = [label for label, old, new in zip(what, before, after) if old != new]
changed += [f"handlers of {n}" for n, found in handlers().items() if found]
if changed:
    sys.exit("importing changed: " + ", ".join(changed))
print("\\n".join(sorted(sys.modules)))
"""


def source_files(room: str) -> list[Path]:
    return sorted(ROOMS[room].rglob("*.py"))


def module_names(room: str) -> list[str]:
    """All modules of a room but `__main__` files, whose import is their run."""
    names = []
    for path in source_files(room):
        parts = path.relative_to(ROOMS[room].parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield node.module or ""


def imports_among(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, by `import m`, `from m import x` or `from package import m`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return (found | set(imported_names(path))) & modules


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_itself_and_the_wire(room: str) -> None:
    allowed = {f"textmill_{room}", "textmill_proto"}
    strangers = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in source_files(room)
        for name in imported_names(path)
        if name.startswith("textmill_") and name.partition(".")[0] not in allowed
    }
    assert strangers == set()


@pytest.mark.parametrize("room", ROOMS)
def test_imports_inside_a_room_point_one_way(room: str) -> None:
    names = set(module_names(room))
    waiting = {
        name: imports_among(path, names) - {name}
        for name, path in zip(module_names(room), source_files(room), strict=True)
    }
    while ready := {name for name, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {name: needed for name, needed in waiting.items() if name not in ready}
    assert waiting == {}, "these import each other"


@pytest.mark.parametrize("room", ROOMS)
def test_importing_every_module_does_nothing_observable(room: str, tmp_path: Path) -> None:
    names = module_names(room)
    assert len(names) > 1
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert probe.returncode == 0, probe.stderr
    assert probe.stderr == ""
    loaded = set(probe.stdout.split())
    assert set(names) <= loaded
    if room in TORCH_FREE:
        assert not {"torch", "transformers", "numpy"} & loaded
    others = {f"textmill_{other}" for other in ROOMS if other not in (room, "proto")}
    assert not others & loaded
