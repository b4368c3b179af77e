"""Writes docs/flags.md, docs/exit-codes.md, and the defaults that `launcher --help` shows: `make flags-page`.

The page is made from the launcher's table of options. The defaults come from the settings of the children.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from textmill_launcher.exit_codes import page as exit_codes_page
from textmill_launcher.options import Child, Group, Ignored, Option, Refused
from textmill_launcher.settings import ALL_OPTIONS, ENVIRONMENT, OPTIONS
from textmill_router.settings import Settings as RouterSettings
from textmill_shard.settings import SERVE_OPTIONS

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "flags.md"
EXIT_CODES_PAGE = REPOSITORY / "docs" / "exit-codes.md"
DEFAULTS = REPOSITORY / "launcher" / "textmill_launcher" / "child_defaults.py"
INTRODUCTION = """\
# Flags

`make flags-page` writes this page from the launcher's table of options. A flag wins over the variables of platforms
(SageMaker, Vertex AI), these win over the variable of the flag, the variable wins over the file of `--config`, and the
file wins over the default. A key of the file is a flag without its dashes: `max-input-tokens = 4096`.
`launcher --print-config` shows the effective values and where each of them comes from. An unknown flag or key ends the
start with exit code 2 and the name that is nearest to it. `launcher --print-completion bash|zsh|fish` writes a script
that completes flags in a shell.

A dash as default means that the model, the memory or the machine decides. The column *read by* names the process that
uses the value.
"""


def child_defaults() -> dict[str, str]:
    """Return the defaults that router and shard have for the flags of the launcher, as texts."""
    router = {name: field.default for name, field in RouterSettings.__dataclass_fields__.items()}
    shard = {option.name: option.default for option in SERVE_OPTIONS}
    found = {}
    for option in OPTIONS:
        for child, defaults in ((Child.ROUTER, router), (Child.SHARD, shard)):
            flag = option.flag_for(child)
            value = defaults.get((flag or "").removeprefix("--").replace("-", "_"))
            if option.default is None and value not in (None, (), ""):
                found[option.name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def defaults_module() -> str:
    """Return the source of the module that holds `child_defaults`."""
    rows = "".join(f'    "{name}": "{value}",\n' for name, value in sorted(child_defaults().items()))
    return (
        '"""The defaults of router and shard, for `--help`. `make flags-page` writes this file."""\n\n'
        f"CHILD_DEFAULTS: dict[str, str] = {{\n{rows}}}\n"
    )


def page() -> str:
    """Return the text of docs/flags.md."""
    return "\n".join([INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    defaults = child_defaults()
    for group in Group:
        if group is Group.TGI:
            continue
        rows = [option for option in OPTIONS if option.group is group]
        head = "| Flag | Variable | Default | Accepted | Read by | Meaning |\n|---|---|---|---|---|---|"
        lines = "\n".join(_row(option, defaults) for option in rows)
        yield f"## {group.value[0].upper()}{group.value[1:]}\n\n{head}\n{lines}\n"
    yield "## TGI compatibility\n\n| Flag | Variable | What happens | Reason |\n|---|---|---|---|"
    for option in ALL_OPTIONS:
        match option.verdict:
            case Ignored(reason):
                yield f"| {_flags(option)} | {_variables(option)} | no effect, one log line | {reason} |"
            case Refused(reason, instead, harmless):
                but = ", ".join(f"`{str(value).lower()}`" for value in harmless)
                what = f"refused, but for {but}" if but else "refused"
                yield f"| {_flags(option)} | {_variables(option)} | {what} | {reason}; {instead} |"
    yield "\n## Variables without a flag\n\n| Variable | Meaning, and who reads the variable |\n|---|---|"
    for names, meaning in ENVIRONMENT.items():
        yield f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {meaning} |"
    yield ""


def _row(option: Option, defaults: dict[str, str]) -> str:
    default = defaults.get(option.name, "—") if option.default in (None, ()) else option.default
    shown = "off" if option.is_switch else f"{default:g}" if isinstance(default, float) else str(default)
    accepted = "no value" if option.is_switch else "a file" if option.name.endswith("_file") else option.accepted
    readers = [child.name.lower() for child in Child if child in option.to and child.name]
    cells = [_flags(option), _variables(option), shown, accepted, " and ".join(readers) or "launcher", option.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flags(option: Option) -> str:
    names = [*([option.short] if option.short else []), option.flag, *option.aliases] if option.has_flag else []
    return ", ".join(f"`{name}`" for name in names)


def _variables(option: Option) -> str:
    return ", ".join(f"`{name}`" for name in (*option.variables, *option.platform_variables))


if __name__ == "__main__":
    DEFAULTS.write_text(defaults_module())
    PAGE.write_text(page())
    EXIT_CODES_PAGE.write_text(exit_codes_page())
    sys.exit(0)
