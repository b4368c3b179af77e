"""Who may call: the keys of the settings and of the key file, which is read again when it changes."""

import asyncio
import logging
from pathlib import Path

from textmill_router.file_watch import FileWatch
from textmill_router.http.api_keys import ApiKeyEntry, KeyRing, digest_of
from textmill_router.http.key_file import KeyFileError, read_key_file
from textmill_router.settings import Settings, SettingsError

log = logging.getLogger(__name__)


class Access:
    """The keys of a server. Its making raises SettingsError where the settings or the file cannot be used.

    The keys of `--api-key` are named key-1, key-2 ... in their order. `watch` is run by the owner of the process.
    """

    def __init__(self, settings: Settings) -> None:
        self._of_flags = [
            ApiKeyEntry(f"key-{number}", digest_of(key.encode())) for number, key in enumerate(settings.api_key, 1)
        ]
        self._file = None if settings.api_key_file is None else Path(settings.api_key_file)
        # Made before the file is read, so that no change falls between the two.
        self.watch = None if self._file is None else FileWatch([str(self._file)], self.reload)
        try:
            entries = self._entries()
        except KeyFileError as error:
            raise SettingsError(f"--api-key-file: {error}") from None
        self.keys = KeyRing(entries) if entries else None  # None: everybody may call

    async def reload(self) -> None:
        """Read the key file again. A file that cannot be used changes nothing and is told in the log."""
        try:
            entries = await asyncio.to_thread(self._entries)
        except KeyFileError as error:
            log.error("the key file is not taken, the keys before stay: %s", error)
            return
        assert self.keys is not None
        self.keys.replace(entries)
        log.info("the key file is read again", extra={"callers": [entry.name for entry in entries]})

    def _entries(self) -> list[ApiKeyEntry]:
        """Return the keys of the flags and of the file. Raises KeyFileError."""
        entries = self._of_flags + ([] if self._file is None else read_key_file(self._file))
        names: set[str] = set()
        digests: dict[bytes, str] = {}
        for entry in entries:
            if entry.name in names:
                raise KeyFileError(f"two keys are named {entry.name}, wanted a name of its own for each")
            other = digests.setdefault(entry.sha256, entry.name)
            if other != entry.name:
                raise KeyFileError(f"{other} and {entry.name} have the same key, wanted a key of its own for each")
            names.add(entry.name)
        return entries
