"""`textmill-router`: the HTTP side as a process.

The exit status is 0 after a signal, 1 when serving failed, and 2 for bad settings.
"""

import logging
import os
import sys

import uvloop

from textmill_router.lifecycle import BackendLost, run
from textmill_router.logs import configure_logging
from textmill_router.settings import SettingsError, load_settings
from textmill_router.text.tokenizer_files import TokenizerError

log = logging.getLogger("textmill_router")


def main() -> None:
    """Serve until a signal."""
    try:
        settings = load_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"textmill-router: {error}", file=sys.stderr)
        sys.exit(2)
    configure_logging(json_output=settings.json_output, level=settings.log_level)
    log.info("settings", extra=settings.describe())
    try:
        uvloop.run(run(settings))
    except SettingsError as error:
        log.critical("bad settings: %s", error)
        sys.exit(2)
    except (BackendLost, TokenizerError) as error:
        log.critical("the router stops: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
