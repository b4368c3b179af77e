"""Callers load and unload adapters: who may, with which names and folders, and what they are told when it fails."""

import ipaddress

from textmill_router.adapters.registry import NameTaken, UnknownAdapter
from textmill_router.engine.adapter_calls import AdapterRefused, ShardAway
from textmill_router.engine.adapter_loads import AdapterLoads
from textmill_router.errors import BadAdapterCall, Forbidden, ModelNotFound, Recovering, ValidationFailed
from textmill_router.serving.adapter_folders import AdapterFolders
from textmill_router.serving.service import Service


class AdapterChanges:
    """The changes of one server's adapters that callers ask for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._folders = AdapterFolders(service.settings)

    def check_allowed(self) -> None:
        """Raise Forbidden unless the operator lets callers change adapters, and no stranger is among the callers."""
        if not self._service.settings.lora_runtime_updates:
            raise Forbidden("adapters are not loaded or unloaded by callers (--lora-runtime-updates)")
        is_loopback = ipaddress.ip_address(self._service.settings.hostname).is_loopback
        if self._service.access.keys is None and not is_loopback:
            raise Forbidden(
                "adapters are loaded and unloaded by callers with an API key only, or where the server listens on the "
                "loopback: set --api-key or --api-key-file, or --hostname 127.0.0.1"
            )

    async def load(self, name: str | None, path: str | None, *, in_place: bool) -> None:
        """Load the adapter that `path` names, and give it the name. A failure changes nothing.

        Raises BadAdapterCall for a missing field and for a name that is taken, ValidationFailed for names, paths and
        files that are refused, and Recovering while no shard serves.
        """
        if not name or not path:
            field = "lora_name" if not name else "lora_path"
            raise BadAdapterCall(f"`{field}` is missing: `lora_name` and `lora_path` must be given", field=field)
        fault = self._service.adapters.check_name(name)
        if fault is not None:
            raise ValidationFailed(f"`lora_name` {fault}", field="lora_name")
        source = await self._folders.find(path)
        try:
            await self._loads().load(name, source, in_place=in_place)
        except NameTaken:
            raise BadAdapterCall(
                f"`lora_name` {name!r} is loaded already: set `load_inplace` to true to load other weights under this "
                "name, or unload the adapter before",
                field="lora_name",
            ) from None
        except AdapterRefused as error:
            # The shard speaks of the folder, whose path is nothing for callers.
            reason = str(error).replace(source.folder, source.root)
            raise ValidationFailed(f"`lora_path` {path[:200]!r} is refused: {reason}", field="lora_path") from error
        except ShardAway as error:
            raise Recovering(f"the adapter is not loaded: {error}; try again", retry_after_s=1) from error

    async def unload(self, name: str | None, *, waits: bool) -> None:
        """Take a name away; `waits` waits until the weights have left the shards, or have another name.

        Raises BadAdapterCall for a missing field, ModelNotFound for a name that no adapter has.
        """
        if not name:
            raise BadAdapterCall("`lora_name` is missing", field="lora_name")
        try:
            await self._loads().unload(name, waits=waits)
        except UnknownAdapter:
            known = self._service.adapters.shown_names()
            raise ModelNotFound(f"the adapter {name[:200]!r} is not loaded: {known}") from None

    def _loads(self) -> AdapterLoads:
        self._service.open_backend()
        loads = self._service.adapters.loads
        assert loads is not None
        return loads
