"""Looks at the files that flags name, before anything is started."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textmill_launcher.errors import SettingsError
from textmill_launcher.settings import Settings


@dataclass(frozen=True, slots=True)
class FlagFile:
    """A file that a flag names."""

    flag: str
    path: str

    def why_unreadable(self) -> str | None:
        """Return why the file cannot be read, in the words of the system, or None."""
        try:
            with Path(self.path).open("rb") as file:
                file.read(1)
        except OSError as error:
            return error.strerror or str(error)
        return None


def flag_files(settings: Settings) -> Iterator[FlagFile]:
    """Yield the files that router and shards will read."""
    named = {
        "--api-key-file": settings.api_key_file,
        "--tls-cert": settings.tls_cert,
        "--tls-key": settings.tls_key,
        "--shard-tls-cert": settings.shard_tls_cert,
        "--shard-tls-key": settings.shard_tls_key,
        "--shard-tls-ca": settings.shard_tls_ca,
        "--tokenizer-config-path": settings.tokenizer_config_path,
    }
    yield from (FlagFile(flag, path) for flag, path in named.items() if path is not None)


def check_flag_files(settings: Settings) -> None:
    """Raises `SettingsError` for the first file that cannot be read."""
    for file in flag_files(settings):
        reason = file.why_unreadable()
        if reason is not None:
            raise SettingsError(f"{file.flag} {file.path} cannot be read: {reason}")
