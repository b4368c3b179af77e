"""Prints what a shell needs to complete the launcher's flags."""

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Print the completion of a shell and end. The library behind it is imported here, because few starts need it."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(
            option_strings,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            choices=SHELLS,
            help="show a script that completes flags in a shell, and end",
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        import shtab

        for action in parser._actions:
            if action.choices is None and isinstance(action.metavar, str) and "|" in action.metavar:
                action.choices = action.metavar.split("|")  # not when parsing, because options word their own refusals
        print(shtab.complete(parser, shell=values))
        parser.exit()
