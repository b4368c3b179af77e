"""The commands of docs/deploy.md."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.deploy.manifests import REPOSITORY

PAGE = REPOSITORY / "docs" / "deploy.md"


@dataclass(frozen=True, slots=True)
class Command:
    """One command as a shell reads it. `needs` is what the first line of its block says, empty where tests run it."""

    text: str
    needs: str


def commands() -> Iterator[Command]:
    """Yield each command of the page's shell blocks; lines that a backslash joins are one."""
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        first = re.fullmatch(r"# needs (.+)", lines[0])
        for line in lines[1:] if first else lines:
            yield Command(" ".join(line.split()), first[1] if first else "")
