"""Rooms never import each other, only the shard imports torch, and the import of a module does nothing.

Inside a room a folder imports only the folders and libraries that `room_tables.py` allows.
"""

import ast
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.room_tables import (
    DIALECT_BRIDGES,
    DIALECTS,
    EVERYTHING,
    FOLDERS,
    FORBIDDEN_STANDARD,
    LIBRARIES,
    OWN_PROCESSES,
    PARTS,
)

REPOSITORY = Path(__file__).parents[2]
ROOMS = {room: REPOSITORY / room / f"textmill_{room}" for room in ("proto", "router", "launcher", "shard")} | {
    "bench": REPOSITORY / "launcher" / "textmill_bench"  # a package of its own, for users, beside the launcher
}
TORCH_FREE = ("proto", "router", "launcher", "bench")

# Imports each module of a room, and reports changes of the process and the modules that came along. The libraries of
# the shard are imported first, because their changes of the environment are not those of our modules.
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
    """Return all modules of a room but the `__main__` files, whose import would run them."""
    names = []
    for path in source_files(room):
        parts = path.relative_to(ROOMS[room].parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@functools.cache
def imports_in(source: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Return the imports in the text of a file."""
    return tuple(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))


def imported_names(path: Path) -> Iterator[str]:
    for node in imports_in(path.read_text()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield node.module or ""


def imports_among(path: Path, modules: set[str]) -> set[str]:
    """Return the modules that a file imports, by `import m`, `from m import x` or `from package import m`."""
    found = set()
    for node in imports_in(path.read_text()):
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


def test_no_test_file_imports_another() -> None:
    """Helpers that several test files use lie in tests/fakes."""
    found = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in (REPOSITORY / "tests").rglob("*.py")
        for name in imported_names(path)
        if name.startswith("tests.") and ".test_" in name
    ]
    assert found == []


def owner_of(relative: Path) -> str:
    """Return the row of the tables to which a file of a room belongs: its folder, or in the root its own name."""
    folder = relative.parent.as_posix()
    return relative.stem if folder == "." else PARTS.get(folder, folder)


def broken_rules(package: Path, room: str) -> list[str]:
    """Return a sentence for each import that the tables do not allow, with the file and both names."""
    prefix = f"textmill_{room}."
    folders, libraries = FOLDERS[room], LIBRARIES[room]
    forbidden = FORBIDDEN_STANDARD[room]
    modules = {path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")}
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        owner = owner_of(relative)
        if owner == "__init__":
            continue
        if owner not in folders:
            found.append(f"{relative}: the folder {owner} is in no table")
            continue
        for name in sorted(set(imported_names(path)) | imports_with_names(path, prefix, modules)):
            if name.startswith(prefix):
                target = name.removeprefix(prefix).replace(".", "/")
                if target not in modules:
                    continue  # a name inside a module, which is in the list too
                to = owner_of(Path(target + ".py"))
                is_allowed = to == owner or folders[owner] is EVERYTHING or to in folders[owner]
                if to in DIALECTS and owner in DIALECTS and to != owner:
                    is_allowed = (relative.as_posix(), to) in DIALECT_BRIDGES
                if not is_allowed:
                    found.append(f"{relative}: {owner} may not import {to}")
            elif name.partition(".")[0] in sys.stdlib_module_names:
                if name.partition(".")[0] in forbidden.get(owner, ()):
                    found.append(f"{relative}: {owner} may not use {name}")
            elif name != prefix[:-1] and name.partition(".")[0] not in libraries.get(owner, ()):
                found.append(f"{relative}: {owner} may not use {name}")
    return found


def imports_with_names(path: Path, prefix: str, modules: set[str]) -> set[str]:
    """Return the modules of the room that a file imports by `from package import module`."""
    return imports_among(path, {prefix + module.replace("/", ".") for module in modules})


@pytest.mark.parametrize("room", FOLDERS)
def test_folders_import_only_what_the_tables_allow(room: str) -> None:
    assert broken_rules(ROOMS[room], room) == []


@pytest.mark.parametrize("room", FOLDERS)
def test_rows_of_the_tables_stand_above_those_that_name_them(room: str) -> None:
    above: set[str] = set()
    for row, allowed in FOLDERS[room].items():
        assert allowed is EVERYTHING or allowed <= above, row
        above.add(row)


@pytest.mark.parametrize("room", FOLDERS)
def test_every_row_of_the_tables_is_a_folder_or_a_file(room: str) -> None:
    owners = {owner_of(path.relative_to(ROOMS[room])) for path in source_files(room)} - {"__init__"}
    assert set(FOLDERS[room]) == owners
    assert set(LIBRARIES[room]) <= owners
    assert set(FORBIDDEN_STANDARD[room]) <= owners


@pytest.mark.parametrize(
    ("room", "file", "line", "both"),
    [
        ("router", "scheduler/grants.py", "import asyncio", ("scheduler", "asyncio")),
        ("router", "scheduler/grants.py", "from textmill_router.engine import wire", ("scheduler", "engine")),
        ("router", "parsers/deltas.py", "from time import monotonic", ("parsers", "time")),
        ("router", "text/stop_strings.py", "import jinja2.sandbox", ("text", "jinja2.sandbox")),
        ("router", "api/openai/models.py", "import textmill_router.api.tgi.types", ("api/openai", "api/tgi")),
        ("router", "api/tgi/work.py", "from textmill_router.api.openai.types import Usage", ("api/tgi", "api/openai")),
        ("shard", "slots/plan.py", "import torch", ("slots", "torch")),
        ("shard", "engine/engine.py", "from textmill_shard.server import wire", ("engine", "server")),
        ("shard", "engine/engine.py", "import transformers", ("engine", "transformers")),
    ],
)
def test_a_planted_import_fails_with_both_names(
    room: str, file: str, line: str, both: tuple[str, str], tmp_path: Path
) -> None:
    package = tmp_path / f"textmill_{room}"
    shutil.copytree(ROOMS[room], package, ignore=shutil.ignore_patterns("__pycache__"))
    planted = package / file
    planted.write_text(planted.read_text() + f"\n{line}\n")
    [sentence] = broken_rules(package, room)
    assert sentence.startswith(f"{file}: ")
    assert all(name in sentence for name in both)


@pytest.mark.parametrize("room", ROOMS)
def test_importing_every_module_does_nothing_observable(room: str, tmp_path: Path) -> None:
    apart = tuple(f".{folder.replace('/', '.')}" for folder in OWN_PROCESSES.get(room, ()))
    names = [name for name in module_names(room) if not any(folder in name for folder in apart)]
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
