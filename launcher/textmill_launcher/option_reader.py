"""Reads the options from argv and from the environment, and checks each value."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.options import BadValue, Option


def read_options(
    options: Sequence[Option], argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the value of each option by the option's name, and warnings for the log.

    A flag wins over its variable; an empty variable counts as unset. Raises `SettingsError` for a bad value and
    `ConflictingSettings` for two names of one option. `--help`, `--version` and unknown flags end the process as
    argparse does (0, 0, 2).
    """
    given = vars(_build_parser(options).parse_args(list(argv)))
    warnings: list[str] = []
    values = {option.name: _value_of(option, given[option.name], environ, warnings) for option in options}
    return values, tuple(warnings)


def _build_parser(options: Sequence[Option]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launcher",
        description="Serve a language model over HTTP: starts one shard per device and the router.",
        epilog="Each flag can be given as an environment variable, e.g. --max-input-tokens as MAX_INPUT_TOKENS.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"textmill {version('textmill')}")
    for option in options:
        names = [*([option.short] if option.short else []), option.flag, *option.aliases]
        if option.is_switch:
            switched_on = _Given(option.flag, "true")
            parser.add_argument(*names, dest=option.name, action="append_const", const=switched_on, help=option.help)
        else:
            help_text = option.help + ("" if option.default in (None, ()) else f" (default: {option.default})")
            parser.add_argument(*names, dest=option.name, action=_Remember, metavar=option.metavar, help=help_text)
    return parser


@dataclass(frozen=True, slots=True)
class _Given:
    """A value, and the flag or the variable that brought the value."""

    where: str
    value: str


class _Remember(argparse.Action):
    """Keep each value beside the flag that brought it, so that a message can name that flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        known = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*known, _Given(option_string or self.dest, values)])


def _value_of(option: Option, flags: list[_Given] | None, environ: Mapping[str, str], warnings: list[str]) -> object:
    """Return the checked value of an option, and add to `warnings` where the log should have one."""
    platform = [_Given(name, environ[name]) for name in option.platform_variables if environ.get(name)]
    given = flags or platform or [_Given(name, environ[name]) for name in option.variables if environ.get(name)]
    if not given:
        return option.default
    if len({entry.where for entry in given}) > 1 and not option.is_repeatable:
        names = " and ".join(sorted({entry.where for entry in given}))
        raise ConflictingSettings(f"{names} mean the same: give one of them")
    if not flags and option.name == "hostname":
        # Shells and containers set HOSTNAME to the machine's name, which is no wish to listen there.
        try:
            return option.parse(given[-1].value)
        except BadValue:
            warnings.append(f"HOSTNAME={given[-1].value} is not an IP address: listening on {option.default}")
            return option.default
    parsed = [_parse(option, entry) for entry in given]
    if option.is_repeatable:
        return tuple(item for part in parsed for item in part)  # type: ignore[attr-defined]
    return parsed[-1]


def _parse(option: Option, given: _Given) -> object:
    shown = "***" if option.is_secret else repr(given.value)
    if not given.value.strip():
        raise SettingsError(f"{given.where} is {shown}, wanted {option.help}")
    try:
        return option.parse(given.value)
    except BadValue as error:
        raise SettingsError(f"{given.where} is {shown}, wanted {error}") from None
