"""Puts the options together: flags, variables of platforms, variables, the file of `--config`, defaults in turn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.flag_parser import Given
from textmill_launcher.options import BadValue, Ignored, Option, Refused


@dataclass(frozen=True, slots=True)
class Reading:
    """The checked values of the options that work, and what there is to say of them."""

    values: dict[str, Any]  # by the option's name; None or the default where nobody gave a value
    sources: dict[str, str]  # the flag, variable or key that brought a value, by the option's name
    warnings: tuple[str, ...]  # for the log
    notes: tuple[str, ...]  # for the log: one sentence for each flag that has no effect here


def read_options(
    options: Iterable[Option],
    flags: Mapping[str, list[Given] | None],
    environ: Mapping[str, str],
    file: Mapping[str, list[Given]],
) -> Reading:
    """Return the values of `options`. An empty variable counts as unset.

    Raises `SettingsError` for bad values and for flags that are refused, with all the refusals in one message, and
    `ConflictingSettings` for two names of one option.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    warnings: list[str] = []
    notes: list[str] = []
    refusals: list[str] = []
    for option in options:
        given = flags.get(option.name) or _from_environment(option, environ) or file.get(option.name)
        match option.verdict:
            case None:
                values[option.name], source = _value_of(option, given, warnings)
                if source is not None:
                    sources[option.name] = source
            case Ignored(reason) if given:
                for entry in given:
                    _parse(option, entry)
                notes.append(f"{given[-1].where} has no effect here: {reason}")
            case Refused(reason, instead, harmless) if given:
                if not _is_harmless(option, given[-1], harmless):
                    refusals.append(f"{given[-1].where} is refused: {reason}; {instead}")
    if refusals:
        raise SettingsError("\n".join(refusals))
    return Reading(values, sources, tuple(warnings), tuple(notes))


def _from_environment(option: Option, environ: Mapping[str, str]) -> list[Given]:
    """Return what the environment says. The variables of platforms win over the option's own."""
    platform = [Given(name, environ[name]) for name in option.platform_variables if environ.get(name)]
    return platform or [Given(name, environ[name]) for name in option.variables if environ.get(name)]


def _value_of(option: Option, given: Sequence[Given] | None, warnings: list[str]) -> tuple[object, str | None]:
    """Return the checked value of an option, and the flag, variable or key that brought it; may add a warning."""
    if not given:
        return option.default, None
    if len({entry.where for entry in given}) > 1 and not option.is_repeatable:
        names = " and ".join(sorted({entry.where for entry in given}))
        raise ConflictingSettings(f"{names} mean the same: give one of them")
    if given[-1].where == "HOSTNAME":
        # Shells and containers set HOSTNAME to the machine's name, which is no wish to listen there.
        try:
            return option.parse(given[-1].value), "HOSTNAME"
        except BadValue:
            warnings.append(f"HOSTNAME={given[-1].value} is not an IP address: listening on {option.default}")
            return option.default, None
    parsed = [_parse(option, entry) for entry in given]
    source = " and ".join(sorted({entry.where for entry in given}))
    if option.is_repeatable:
        return tuple(item for part in parsed for item in part), source  # type: ignore[attr-defined]
    return parsed[-1], source


def _is_harmless(option: Option, given: Given, harmless: Sequence[object]) -> bool:
    try:
        return option.parse(given.value) in harmless
    except BadValue:
        return False


def _parse(option: Option, given: Given) -> object:
    if not given.value.strip():
        raise SettingsError(f"{given.where} is empty: give a value, or leave it out ({option.help})")
    shown = "***" if option.is_secret else repr(given.value)
    try:
        return option.parse(given.value)
    except BadValue as error:
        raise SettingsError(f"{given.where} is {shown}, wanted {error}") from None
