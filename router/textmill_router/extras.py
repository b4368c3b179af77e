"""Packages that only some settings need, and the extras of the distribution that bring them."""

from collections.abc import Sequence
from importlib.util import find_spec


class ExtraMissing(Exception):
    """Packages that a setting needs are not installed. The message names the extra that brings them."""


def check_installed(names: Sequence[str], *, extra: str, setting: str) -> None:
    """Raise ExtraMissing where one of the packages is missing. Nothing is imported but the packages above these.

    `setting` is the flag that asks for them, with its value.
    """
    missing = next((name for name in names if not _is_installed(name)), None)
    if missing is not None:
        raise ExtraMissing(
            f"{setting} needs {missing}, which is not installed: install the extra {extra} "
            f"(pip install 'textmill[{extra}]'), or leave the flag and its variables out"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above is missing
        return False
