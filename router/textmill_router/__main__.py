"""`textmill-router`: the HTTP side as a process.

The exit status is 0 after a signal, and else a code of `exit_codes.py`.
"""

import faulthandler
import logging
import os
import signal
import sys

import uvloop

from textmill_router.exit_codes import BAD_FILES, CHILD_DIED, PORT_TAKEN, WRONG_SETTING
from textmill_router.lifecycle import AddressTaken, BackendLost, run
from textmill_router.logs import configure_logging
from textmill_router.serving.checkpoint_defaults import CheckpointError
from textmill_router.settings import SettingsError, load_settings
from textmill_router.text.tokenizer_files import TokenizerError

log = logging.getLogger("textmill_router")


def main() -> None:
    """Serve until a signal."""
    try:
        settings = load_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"textmill-router: {error}", file=sys.stderr)
        sys.exit(WRONG_SETTING)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # also while the loop does not turn
    configure_logging(json_output=settings.json_output, level=settings.log_level)
    log.info("settings", extra=settings.describe())
    try:
        uvloop.run(run(settings))
    except AddressTaken as error:
        log.critical("%s", error)
        sys.exit(PORT_TAKEN)
    except SettingsError as error:
        log.critical("bad settings: %s", error)
        sys.exit(WRONG_SETTING)
    except (TokenizerError, CheckpointError) as error:
        log.critical("the router stops: %s", error)
        sys.exit(BAD_FILES)
    except BackendLost as error:
        log.critical("the router stops: %s", error)
        sys.exit(CHILD_DIED)


if __name__ == "__main__":
    main()
