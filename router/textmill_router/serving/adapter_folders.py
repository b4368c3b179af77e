"""Where adapters may come from while the server runs: below one folder, and a list of repositories of the hub."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from textmill_router.adapters.registry import AdapterSource
from textmill_router.errors import ValidationFailed
from textmill_router.serving.adapters import adapter_source
from textmill_router.settings import Settings

FIELD = "lora_path"


class AdapterFolders:
    """The folder of `--lora-dir`, and the repositories of `--lora-hub`, which the launcher fetched before the start."""

    def __init__(self, settings: Settings) -> None:
        self._root = None if settings.lora_dir is None else Path(settings.lora_dir)
        self._hub: Mapping[str, str] = dict(entry.split("=", 1) for entry in settings.lora_hub_folder)

    async def find(self, path: str) -> AdapterSource:
        """Return the source that a caller's `lora_path` names. Raises ValidationFailed for every other path.

        A path outside of the folder gets one answer, whether something is there or not.
        """
        if path in self._hub:
            return adapter_source(self._hub[path])
        if self._root is None:
            raise self._refuse(path, "no folder is open to callers (--lora-dir)")
        folder = await asyncio.to_thread(_resolve, self._root, path)
        if folder is None:
            raise self._refuse(path, "it must be a folder below the one of --lora-dir")
        return adapter_source(str(folder))

    def _refuse(self, path: str, reason: str) -> ValidationFailed:
        listed = f", or one of the repositories {', '.join(map(repr, sorted(self._hub)))}" if self._hub else ""
        return ValidationFailed(f"`{FIELD}` {path[:200]!r} cannot be loaded: {reason}{listed}", field=FIELD)


def _resolve(root: Path, path: str) -> Path | None:
    """Return the folder without links, or None where there is no such folder below the root. May wait for a disk."""
    try:
        root = root.resolve()
        folder = (root / path).resolve()
        return folder if folder != root and folder.is_relative_to(root) and folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        return None
