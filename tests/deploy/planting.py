"""Copies of `deploy/` with one mistake, to see that the checks find each sort of mistake."""

import shutil
from pathlib import Path

import yaml

from tests.deploy.manifests import DEPLOY


def load_mistakes(name: str) -> list[dict[str, str]]:
    """Return the mistakes that a file of this folder lists; the file says what the fields mean."""
    mistakes: list[dict[str, str]] = yaml.safe_load(Path(__file__).with_name(name).read_text())
    assert len({mistake["name"] for mistake in mistakes}) == len(mistakes)
    return mistakes


def plant(folder: Path, mistake: dict[str, str]) -> Path:
    """Return a copy of `deploy/` in which every `good` of one file is `bad`."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy)
    file = (copy / "kubernetes" / mistake["file"]).resolve()
    text = file.read_text()
    assert mistake["good"] in text, f"{file.name} does not hold {mistake['good']!r}"
    file.write_text(text.replace(mistake["good"], mistake["bad"]))
    return copy
