"""docs/flags.md and the defaults that the help shows are those of the code; `make flags-page` writes both."""

import re
from pathlib import Path

from textmill_launcher.exit_codes import page as exit_codes_page

from tests.flags_page import DEFAULTS, EXIT_CODES_PAGE, PAGE, defaults_module, page

REPOSITORY = Path(__file__).parents[2]


def test_page_is_what_the_table_says() -> None:
    assert PAGE.read_text() == page(), "run: make flags-page"


def test_page_of_exit_codes_is_what_the_table_says() -> None:
    assert EXIT_CODES_PAGE.read_text() == exit_codes_page(), "run: make flags-page"


def test_defaults_of_the_help_are_those_of_router_and_shard() -> None:
    assert DEFAULTS.read_text() == defaults_module(), "run: make flags-page"


def test_every_flag_and_variable_of_the_migration_page_is_on_the_page() -> None:
    named = set(re.findall(r"^\| `(.+?)` \|", (REPOSITORY / "docs" / "migrate-from-tgi.md").read_text(), re.MULTILINE))
    assert len(named) > 50
    text = page()
    assert sorted(name for name in named if f"`{name}`" not in text) == []
