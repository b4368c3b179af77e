"""The adapters of a server as calls see them: what a name means, and a hold on its weights while a call runs."""

import asyncio
import os.path
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from textmill_router.adapters.names import name_fault
from textmill_router.adapters.registry import AdapterRegistry, AdapterSource, NameTaken
from textmill_router.engine.adapter_loads import AdapterLoads
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.errors import ModelNotFound, RequestError, RuleBroken
from textmill_router.request import Adapter
from textmill_router.serving.kept_adapters import KeptAdapter, read_kept, write_kept
from textmill_router.settings import Settings, SettingsError

MAX_SHOWN_NAMES = 20
_MODEL_FIELD = "model"
_HUB_FOLDER = "models--"  # the hub's library names the folder of a repository models--OWNER--NAME


@dataclass(frozen=True, slots=True)
class AskedAdapter:
    """The adapter that a call asks for, and the field that names it; the base model is no adapter."""

    name: str
    field: str = _MODEL_FIELD


class Adapters:
    """The registry of a server, and the loads once there is an engine. Raises SettingsError for bad names."""

    def __init__(self, settings: Settings) -> None:
        self.registry = AdapterRegistry()
        self.loads: AdapterLoads | None = None
        self._base_names = (*settings.model_names, settings.model_id)
        self._file = None if settings.lora_state_file is None else Path(settings.lora_state_file)
        self._writing = asyncio.Lock()
        kept = None if self._file is None else read_kept(self._file)
        if kept is not None:  # this process stands in for one that has died
            for one in kept:
                self.registry.register(one.name, replace(adapter_source(one.folder), expected_digest=one.digest))
            return
        for entry in settings.lora_adapter:
            name, _, folder = entry.partition("=")
            fault = name_fault(name, self._base_names)
            if fault is not None:
                raise SettingsError(f"--lora-adapter: the name of an adapter {fault}")
            try:
                self.registry.register(name, adapter_source(folder))
            except NameTaken:
                raise SettingsError(f"--lora-adapter: two adapters have the name {name!r}") from None

    def attach(self, engine: ReplicaSet) -> None:
        """Take the engine whose shards load the adapters."""
        self.loads = AdapterLoads(self.registry, engine, on_change=self._keep)

    async def _keep(self) -> None:
        """Leave the names of now for the router that would follow this one."""
        if self._file is None:
            return
        async with self._writing:  # the last write has the last names
            loaded = [KeptAdapter(name, folder, digest) for name, folder, digest in self.registry.loaded()]
            await asyncio.to_thread(write_kept, self._file, loaded)

    def is_base(self, name: str) -> bool:
        """Whether a text names the base model."""
        return name in self._base_names

    def check_name(self, name: str) -> str | None:
        """Return what is wrong with a name for a new adapter, or None."""
        return name_fault(name, self._base_names)

    @contextmanager
    def hold(self, asked: AskedAdapter | None) -> Iterator[Adapter | None]:
        """Hold the weights of an adapter while a call runs. Gives None for the base model and for unknown names."""
        adapter = None if asked is None else self.registry.acquire(asked.name)
        try:
            yield adapter
        finally:
            if adapter is not None:
                assert self.loads is not None
                self.loads.release(adapter)

    def not_loaded(self, asked: AskedAdapter) -> RequestError:
        """Return the refusal of a name that stands for no loaded adapter."""
        if asked.field == _MODEL_FIELD:
            return ModelNotFound(f"the model {asked.name[:200]!r} does not exist: {self.shown_names()}")
        return RuleBroken(
            "`{field}` {found!r} is not loaded: {known}; leave it out for the base model",
            field=asked.field,
            found=asked.name[:200],
            known=self.shown_names(),
        )

    def shown_names(self) -> str:
        """Return which adapters this server has, as a clause for a refusal."""
        names = [repr(one.name) for one in self.registry.listed()]
        if not names:
            return "this server has no adapters"
        further = ", ..." if len(names) > MAX_SHOWN_NAMES else ""
        return f"this server has the adapters {', '.join(names[:MAX_SHOWN_NAMES])}{further}"


def adapter_source(folder: str) -> AdapterSource:
    """Return the source of an adapter's folder. Clients see the name of the folder, or the hub's repository."""
    parts = Path(folder).parts
    repository = next((part for part in reversed(parts) if part.startswith(_HUB_FOLDER)), None)
    if repository is not None and "snapshots" in parts:
        return AdapterSource(folder, repository.removeprefix(_HUB_FOLDER).replace("--", "/"))
    return AdapterSource(folder, os.path.basename(folder.rstrip("/")) or folder)
