"""The command `launcher doctor`."""

import json
import logging
import os
from collections.abc import Sequence

from textmill_launcher.doctor.file_checks import check_files
from textmill_launcher.doctor.finding import State
from textmill_launcher.doctor.machine_checks import check_machine
from textmill_launcher.doctor.outlet_checks import check_outlets
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.settings import read_start, serve_parser

DESCRIPTION = (
    "Say whether this machine is ready for a start with these flags: packages, devices, compiler, memory, limits, "
    "ports, caches, the model's files, the hub. Each line is ok, warning or failure, with what to do. Nothing starts."
)


def run(argv: Sequence[str]) -> int:
    """Print a line for each check. Returns 0, or the exit code that the first failure would give a start."""
    parser = serve_parser("launcher doctor", DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="show the findings as JSON")
    start = read_start(parser, argv, os.environ)
    logging.getLogger("textmill_launcher").addHandler(logging.NullHandler())
    findings = []
    settings = start.settings
    for finding in (*check_machine(settings), *check_outlets(settings), *check_files(settings, os.environ)):
        findings.append(finding)
        if not start.flags["json"]:
            print(finding.as_text(), flush=True)
    if start.flags["json"]:
        print(json.dumps([finding.as_json() for finding in findings]))
    return next((finding.code for finding in findings if finding.state is State.FAILURE), ExitCode.FINE)
