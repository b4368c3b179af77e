"""Reads the command line. An unknown flag is answered with the flag that is nearest to it."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

from textmill_launcher.child_defaults import CHILD_DEFAULTS
from textmill_launcher.options import Group, Option

USAGE_EXIT_CODE = 2


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and the flag, the variable or the key that brought the value."""

    where: str
    value: str


class FlagParser(argparse.ArgumentParser):
    """A parser of the launcher's flags, or of the flags of one of its commands."""

    known_commands: tuple[str, ...] = ()  # the words that may stand before the flags

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            usage="%(prog)s [flags]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
        )
        self.add_argument("-V", "--version", action=_ShowVersion, nargs=0, help="show the version and end")

    def add_options(self, options: Iterable[Option]) -> None:
        """Add each option that has a flag, under the heading of its group."""
        groups: dict[Group, Any] = {}
        for option in options:
            if not option.has_flag:
                continue
            if option.group not in groups:
                groups[option.group] = self.add_argument_group(option.group.value)
            _add(groups[option.group], option)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return what the command line gives, by name. Ends the process with code 2 for what no flag takes."""
        namespace, unknown = self.parse_known_args(list(argv))
        if unknown:
            self.error(self._explain(unknown))
        return vars(namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with code 2 and one line that names the mistake."""
        self.exit(USAGE_EXIT_CODE, f"{self.prog}: {message} ({self.prog} --help lists all flags)\n")

    def _explain(self, unknown: Sequence[str]) -> str:
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if not flags:
            return f"unexpected argument {unknown[0]!r}" + _hint(unknown[0], self.known_commands)
        return f"there is no flag {flags[0]}" + _hint(flags[0], self._option_string_actions)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the word of `known` that is most like `name`, or None where none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _hint(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return "" if near is None else f": did you mean {near}?"


def _add(group: Any, option: Option) -> None:
    names = [*([option.short] if option.short else []), option.flag, *option.aliases]
    if option.is_switch:
        switched_on = Given(option.flag, "true")
        group.add_argument(*names, dest=option.name, action="append_const", const=switched_on, help=_help_of(option))
    else:
        group.add_argument(*names, dest=option.name, action=_Remember, metavar=option.metavar, help=_help_of(option))


def _help_of(option: Option) -> str:
    default = CHILD_DEFAULTS.get(option.name, "") if option.default in (None, ()) else option.default
    shown = option.help + (f" (default: {default})" if default not in ("", False) else "")
    return shown.replace("%", "%%")  # because argparse formats the text


class _Remember(argparse.Action):
    """Keep each value beside the flag that brought the value, so that a message can name that flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        known = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*known, Given(option_string or self.dest, values)])


class _ShowVersion(argparse.Action):
    """Print the version and end. The version is read here and not before, because reading it takes 20 ms."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(f"textmill {version('textmill')}")
        parser.exit()
