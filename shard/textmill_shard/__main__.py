"""The command `textmill-shard`, with its parts `serve`, `convert` and `tokenizer`."""

import errno
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from textmill_shard.logs import configure_logging
from textmill_shard.settings import ConvertSettings, ServeSettings, SettingsError, TokenizerSettings, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 2 for bad settings, or that of a fault (`exit_code_of`)."""
    try:
        settings = load_settings(sys.argv[1:] if argv is None else argv, os.environ)
    except SettingsError as error:
        print(f"textmill-shard: {error}", file=sys.stderr)
        return 2
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # writes the stacks, also while a step hangs
    rank = settings.rank if isinstance(settings, ServeSettings) else 0
    configure_logging(rank=rank, json_output=settings.json_output, level=settings.log_level)
    log = logging.getLogger("textmill_shard")
    # The imports of torch and transformers take seconds, so bad settings are told before them.
    if isinstance(settings, ServeSettings):
        with _collector_at_rest():
            from textmill_shard.lifecycle import serve

        log.info("settings", extra=settings.describe())
        return serve(settings)
    from textmill_shard.errors import WRONG_SETTING, ModelError, exit_code_of

    source = settings.gguf if isinstance(settings, ConvertSettings) else settings.model_dir
    try:
        folder = _convert(settings)
    except (ModelError, OSError) as error:
        if isinstance(error, OSError) and _is_closed(settings.cache_dir, error):
            log.critical(
                "converting %s failed: %s cannot be written (%s): give this user the right to write there, or give "
                "another --conversion-cache",
                *(source, settings.cache_dir, error),
            )
            return WRONG_SETTING
        log.critical("converting %s failed: %s", source, error)
        return exit_code_of(error)
    print(folder)
    return 0


def _is_closed(cache: Path, error: OSError) -> bool:
    """Whether the error says that this user cannot write in the cache, or cannot make it."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) or error.filename is None:
        return False
    place = Path(error.filename)
    return place.is_relative_to(cache) or cache.is_relative_to(place)


def _convert(settings: ConvertSettings | TokenizerSettings) -> Path:
    """Convert a model or the tokenizer of one, and return the folder. Raises ModelError and OSError."""
    if isinstance(settings, ConvertSettings):
        with _collector_at_rest():
            from textmill_shard.loader.gguf_cache import convert_gguf

        return convert_gguf(settings.gguf, settings.cache_dir, settings.dtype)
    with _collector_at_rest():
        from textmill_shard.loader.tokenizer_convert import convert_tokenizer

    return convert_tokenizer(settings.model_dir, settings.cache_dir, trust_remote_code=settings.trust_remote_code)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Import without the collector of garbage, and keep the imported objects out of its later walks.

    torch and transformers make a million objects, of which hardly one is garbage. The walks through these objects are a
    fifth of the time of the imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run() -> NoReturn:
    """Run the command and end the process at once: libraries that torch brings write of their own leaks at the end."""
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
