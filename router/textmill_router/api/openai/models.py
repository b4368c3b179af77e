"""GET /v1/models and /v1/models/{id}, which name the model, also while it loads, and then the adapters."""

from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.adapters.names import is_placeholder
from textmill_router.adapters.registry import ListedAdapter
from textmill_router.api.openai.model_names import model_not_found
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.service import Service


class ModelsRoute:
    """An ASGI endpoint of the list, or of one model where the path has a name. A name may hold slashes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name: str = scope.get("path_params", {}).get("model", "")
        if not name:
            models = [self._model(served) for served in self._service.settings.model_names]
            models += [self._adapter(one) for one in self._service.adapters.registry.listed() if one.facts is not None]
            await send_reply(scope, send, 200, msgspec.json.encode({"object": "list", "data": models}))
            return
        adapter = self._service.adapters.registry.find(name)
        if name in self._service.settings.model_names:
            await send_reply(scope, send, 200, msgspec.json.encode(self._model(name)))
        elif adapter is not None and adapter.facts is not None:
            await send_reply(scope, send, 200, msgspec.json.encode(self._adapter(adapter)))
        elif is_placeholder(name):
            base = self._service.settings.model_names[0]
            await send_reply(scope, send, 200, msgspec.json.encode(self._model(base)))
        else:
            await send_error(scope, send, model_not_found(name, self._service))

    def _adapter(self, adapter: ListedAdapter) -> dict[str, Any]:
        """Return an adapter as a model whose parent is the base model."""
        base = self._model(self._service.settings.model_names[0])
        return {**base, "id": adapter.name, "root": adapter.root, "parent": base["id"]}

    def _model(self, name: str) -> dict[str, Any]:
        service = self._service
        model_id = service.settings.model_id
        modalities = {"input_modalities": ["text", "image"]} if service.takes_images else {}
        return {
            "id": name,
            "object": "model",
            "created": service.model_created_s,
            "owned_by": owner_of(model_id),
            "root": model_id,
            "parent": None,
            "max_model_len": service.max_model_tokens,
            **modalities,
        }


def owner_of(model_id: str) -> str:
    """Return the owner that a hub id names (`owner/name`), or for a folder or a file the server's name."""
    owner, _, name = model_id.partition("/")
    is_hub_id = bool(owner) and owner not in (".", "..", "~") and bool(name) and "/" not in name
    return owner if is_hub_id else "textmill"
