"""The command `launcher download`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from textmill_launcher.child_arguments import download_command, download_environment
from textmill_launcher.download_report import BAR, form_for
from textmill_launcher.errors import NoSuchModel, SettingsError
from textmill_launcher.model_files import SourceKind, locate_model
from textmill_launcher.settings import read_start, serve_parser

DESCRIPTION = (
    "Fetch a model of the hub into the cache, and print its folder: what a server needs, or what the patterns say. A "
    "download that was ended goes on where it ended, every file is compared with the hub's checksum, and a transfer in "
    "which no byte comes for 60 seconds is started again by plain HTTP. Takes the model's flags of the server."
)


def run(argv: Sequence[str]) -> NoReturn:
    """Become the process that fetches the model. Raises `LaunchError` for wrong flags."""
    parser = serve_parser("launcher download", DESCRIPTION)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="hub id of the model, as --model-id")
    for name, purpose in (("--include", "fetch these files"), ("--exclude", "leave these files out")):
        parser.add_argument(name, action="append", default=[], metavar="PATTERN", help=f"{purpose}; repeatable")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the files with the hub's checksums")
    parser.add_argument("--stall-timeout-s", default="60", metavar="N", help="seconds without a byte (default: 60)")
    start = read_start(parser, argv, os.environ)
    settings, flags = start.settings, start.flags
    model_id = flags["model"] or settings.model_id
    if model_id is None:
        raise SettingsError("the model is missing: launcher download org/model")
    if Path(str(model_id)).exists() or locate_model(str(model_id)).kind is not SourceKind.HUB:
        raise NoSuchModel(f"{model_id} is here already: only a model of the hub (owner/name) is fetched")
    command = download_command(str(model_id), settings)
    for name in ("include", "exclude"):
        patterns = flags[name]
        assert isinstance(patterns, list)
        command += [word for pattern in patterns for word in (f"--{name}", str(pattern))]
    command += ["--stall-timeout", _seconds(str(flags["stall_timeout_s"]))]
    command += [] if flags["no_verify"] else ["--verify"]
    is_terminal = sys.stderr.isatty()
    command += ["--show", form_for(json_output=settings.json_output, is_terminal=is_terminal, on_terminal=BAR)]
    sys.stdout.flush()
    os.execve(command[0], command, download_environment(os.environ, settings))  # so that a signal reaches the download


def _seconds(value: str) -> str:
    try:
        if float(value) > 0:
            return value
    except ValueError:
        pass
    raise SettingsError(f"--stall-timeout-s is {value!r}, wanted a number of seconds above 0")
