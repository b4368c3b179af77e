"""`launcher`: serve a model over HTTP."""

import logging
import os
import sys
from collections.abc import Sequence

from textmill_launcher import logs
from textmill_launcher.errors import LaunchError
from textmill_launcher.settings import load_settings
from textmill_launcher.supervisor import serve

log = logging.getLogger("textmill_launcher")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher. Returns its exit code: 0 after a signal, else the code of the error or of the dead child."""
    try:
        settings = load_settings(sys.argv[1:] if argv is None else argv, os.environ)
    except LaunchError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code
    output = logs.configure(settings.json_output, settings.log_level)
    log.info("settings", extra=settings.describe())
    for warning in settings.warnings:
        log.warning("%s", warning)
    return serve(settings, os.environ, output)


if __name__ == "__main__":
    sys.exit(main())
