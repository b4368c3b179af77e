"""A wheel has every file of the packages that is no Python code, because `pyproject.toml` names each of them."""

import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE_DATA = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


@pytest.mark.parametrize("package", PACKAGE_DATA)
def test_every_file_of_a_package_is_in_its_wheel(package: str) -> None:
    [folder] = REPOSITORY.glob(f"*/{package}")
    named = {path for pattern in PACKAGE_DATA[package] for path in folder.glob(pattern) if path.is_file()}
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(folder) for path in files - named if path.suffix != ".py"} == set()
    assert named
