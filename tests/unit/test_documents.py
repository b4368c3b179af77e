"""The files, classes, constants and flags that the documents name exist."""

import re
import tomllib
from pathlib import Path

import pytest
from textmill_launcher.settings import ALL_OPTIONS

REPOSITORY = Path(__file__).parents[2]
FOLDERS = (
    ".",
    "docs",
    "docs/decisions",
    "proto",
    "router",
    "shard",
    "launcher",
    "tests",
    "tests/fakes",
    "bench",
    "deploy",
)
NAMED_TEST = r"`((?:contract|integration|unit(?:/\w+)*)/\w+\.py)`"
GUIDES = ("CONTRIBUTING.md", "docs/debugging.md", "docs/extending.md", "docs/glossary.md", "docs/style.md")
# The folders from which a guide may write a path: the root, tests, and the folders of the rooms' packages.
ROOTS = (
    ".",
    "tests",
    "router/textmill_router",
    "shard/textmill_shard",
    "launcher/textmill_launcher",
    "proto/textmill_proto",
)
DOCUMENTS = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_of_a_document_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_files_and_folders_named_by_a_guide_exist(guide: str) -> None:
    """Names in capitals, as in `api/NAME/types.py`, stand for a name that the reader chooses."""
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / guide).read_text(), flags=re.DOTALL | re.MULTILINE)
    files = re.findall(r"`([\w./-]+\.(?:py|md|proto|toml|txt|json|html|[ch]))`", text)
    folders = re.findall(r"`((?:[\w-]+/)+)`", text)
    named = {name for name in (*files, *folders) if re.search(r"\b[A-Z]{2,}/", name) is None}
    assert len(named) > 5
    assert sorted(name for name in named if not any((REPOSITORY / root / name).exists() for root in ROOTS)) == []


@pytest.mark.parametrize("guide", GUIDES)
def test_classes_and_constants_named_by_a_guide_exist(guide: str) -> None:
    """`SubBatch` is a class and `GOOD_VALUES` a constant. A variable of the environment is a flag in capitals."""
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / guide).read_text(), flags=re.DOTALL | re.MULTILINE)
    classes = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", text))
    constants = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text))
    code = "\n".join(path.read_text() for room in (*ROOTS[1:], "tests") for path in (REPOSITORY / room).rglob("*.py"))
    known = set(re.findall(r"^ *class (\w+)", code, re.MULTILINE))
    known |= set(re.findall(r"^([A-Z_]+)(?::.*)? = ", code, re.MULTILINE))
    known |= {name.upper() for name in re.findall(r"^    (\w+): .* = \w*(?:option|switch)\(", code, re.MULTILINE)}
    assert sorted((classes | constants) - known) == []


def test_extending_lists_its_sections_in_order() -> None:
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    [listed] = re.findall(r"^Sections: (.+?)\.$", text, re.MULTILINE | re.DOTALL)
    links = [f"[{heading[0].lower()}{heading[1:]}](#{heading.lower().replace(' ', '-')})" for heading in headings]
    assert re.findall(r"\[[^]]+\]\([^)]+\)", listed) == links


def test_tests_named_by_the_compatibility_page_exist() -> None:
    text = (REPOSITORY / "docs" / "compatibility.md").read_text()
    named = set(re.findall(NAMED_TEST, text))
    assert len(named) > 15
    assert sorted(name for name in named if not (REPOSITORY / "tests" / name).exists()) == []


def test_tests_that_contributors_are_told_to_run_exist() -> None:
    section = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## What to run")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"(?:unit|contract|integration|zoo)\b[\w/]*(?:\.py)?", row)}
    assert len(named) > 30
    assert sorted(name for name in named if not (REPOSITORY / "tests" / name).exists()) == []


def test_stand_ins_named_by_their_readme_exist_and_none_is_left_out() -> None:
    folder = REPOSITORY / "tests" / "fakes"
    named = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text())) - {"test_rooms.py"}
    assert named == {path.name for path in folder.glob("*.py")} - {"__init__.py"}


def test_every_difference_names_the_test_that_holds_it() -> None:
    text = (REPOSITORY / "docs" / "compatibility.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| TGI")]
    assert len(rows) > 50
    assert [row[0] for row in rows if re.search(NAMED_TEST, row[-1]) is None] == []


def test_executables_named_by_the_compatibility_page_are_installed() -> None:
    text = (REPOSITORY / "docs" / "compatibility.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| executables "))
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(re.findall(r"`([\w-]+)`", row.split(" | ")[1])) == set(scripts)


def test_files_named_by_the_architecture_page_exist() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    known = {path.as_posix() for room in ("router", "shard", "launcher", "tests") for path in room_files(room)}
    assert len(named) > 40
    assert sorted(name for name in named if not any(path.endswith("/" + name) for path in known)) == []


def room_files(room: str) -> list[Path]:
    return list((REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md", "docs/debugging.md", "docs/gpu.md"])
def test_every_flag_that_a_page_names_is_one_of_the_launcher(page: str) -> None:
    """Snippets in a named language are of other programs with flags of their own, and so are the words on lm-eval."""
    flags = {name for option in ALL_OPTIONS for name in (option.flag, *option.aliases)} | {
        "--batch_size",
        "--budget-s",
        "--config",
        "--device-memory",
        "--help",
        "--print-completion",
        "--print-config",
        "--shm-size",
    }
    text = re.sub(r"^```\w+\n.*?^```", "", (REPOSITORY / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
    assert len(named) > 3
    assert named - flags == set()


def test_every_bench_that_can_be_run_is_in_its_readme() -> None:
    folder = REPOSITORY / "bench"
    runnable = {path.stem for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()} - {
        "__main__"
    }
    assert len(runnable) > 5
    named = set(re.findall(r"bench\.(\w+)", (folder / "README.md").read_text()))
    assert sorted(runnable - named) == []


def test_each_decision_has_a_number_of_its_own_which_its_title_repeats() -> None:
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        assert page.read_text().startswith(f"# {number}. "), page.name
