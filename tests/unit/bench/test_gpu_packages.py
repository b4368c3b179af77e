"""The benchmark of a GPU needs torch, Triton, transformers, numpy and grpcio, and nothing that these five leave out."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
ROOTS = [REPOSITORY / room for room in ("proto", "router", "shard", "launcher")] + [REPOSITORY]
# The five, and what they bring along.
INSTALLED = {"torch", "triton", "transformers", "numpy", "grpc", "safetensors", "tokenizers", "huggingface_hub"}
PARTS = sorted((REPOSITORY / "bench" / "gpu").glob("*.py"))


def names_at_import(path: Path) -> Iterator[str]:
    """Return what the import of a file imports: all but the bodies of functions and blocks for the checker of types."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def file_of(name: str) -> Path | None:
    for root in ROOTS:
        base = root.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def libraries_of(paths: list[Path]) -> dict[str, str]:
    """Return the libraries that the files import, directly or through other files of ours, each with such a file."""
    found: dict[str, str] = {}
    waiting, seen = list(paths), set(paths)
    while waiting:
        path = waiting.pop()
        for name in names_at_import(path):
            first = name.partition(".")[0]
            if first == "bench" or first.startswith("textmill_"):
                target = file_of(name)
                if target is not None and target not in seen:
                    seen.add(target)
                    waiting.append(target)
            elif first not in sys.stdlib_module_names:
                found.setdefault(first, str(path.relative_to(REPOSITORY)))
    return found


def test_no_part_imports_a_library_beside_the_five_and_what_they_bring() -> None:
    found = libraries_of(PARTS)
    assert {"torch", "triton", "transformers", "numpy"} <= set(found)
    assert {library: file for library, file in found.items() if library not in INSTALLED} == {}


def test_a_library_is_found_through_files_and_not_in_functions(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("from textmill_shard.grammar.matcher import Matcher\n\ndef late():\n    import httpx\n")
    found = set(names_at_import(path))
    assert "httpx" not in found
    assert file_of("textmill_shard.grammar.matcher") in {file_of(name) for name in found}
    assert "llguidance" in names_at_import(REPOSITORY / "shard" / "textmill_shard" / "grammar" / "matcher.py")
