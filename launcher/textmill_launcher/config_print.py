"""Shows the effective settings as a file for `--config`, with the origin of each value. Secrets are masked."""

import json
import re
from collections.abc import Iterator

from textmill_launcher.child_defaults import CHILD_DEFAULTS
from textmill_launcher.options import Child
from textmill_launcher.settings import OPTIONS, Start


def print_config(start: Start) -> str:
    """Return one line for each flag: `key = value  # origin`. A value that nobody set yet stands in a comment."""
    return "\n".join(_lines(start)) + "\n"


def _lines(start: Start) -> Iterator[str]:
    group = None
    for option in OPTIONS:
        if option.group is not group:
            group = option.group
            yield f"\n# {group.value}"
        value, source = getattr(start.settings, option.name), start.sources.get(option.name)
        if option.is_secret and value:
            yield f"# {option.name} = ***  # {source}"
        elif value is None or (value == () and source is None):
            child = "router" if Child.ROUTER in option.to else "shard" if Child.SHARD in option.to else "launcher"
            default = CHILD_DEFAULTS.get(option.name)
            said = f" = {_toml_of(default)}  # default" if default else f": the {child} decides"
            yield f"# {option.name}{said}"
        else:
            yield f"{option.name} = {_toml(value)}  # {source or 'default'}"


def _toml_of(default: str) -> str:
    """Return a default as TOML. All defaults stand in their table as texts, numbers and truth too."""
    return default if re.fullmatch(r"true|false|\d+(\.\d+)?", default) else _toml(default)


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON and TOML write texts, numbers and truth alike.
    return json.dumps(value, ensure_ascii=False)
