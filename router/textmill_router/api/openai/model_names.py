"""The names that a call may use for the model or for one of its adapters."""

from textmill_router.adapters.names import is_placeholder
from textmill_router.errors import ModelNotFound, ValidationFailed
from textmill_router.serving.adapters import MAX_SHOWN_NAMES, AskedAdapter
from textmill_router.serving.service import Service


def asked_adapter(name: str | None, service: Service) -> AskedAdapter | None:
    """Return the adapter that a `model` names, or None for the base model. Raises ModelNotFound.

    Any name means the base model while the server has no adapters, unless `--strict-model` is given. With adapters,
    only the model's own names, `tgi`, `dummy` and URLs do.
    """
    settings, registry = service.settings, service.adapters.registry
    if name is None or name in settings.model_names:
        return None
    if registry.find(name) is not None:
        return AskedAdapter(name)
    if settings.strict_model:
        raise model_not_found(name, service)
    if is_placeholder(name) or service.adapters.is_base(name) or registry.is_empty:
        return None
    raise model_not_found(name, service)


def check_model(name: str | None, service: Service) -> None:
    """Raise ModelNotFound for a `model` that names neither the base model nor an adapter."""
    asked_adapter(name, service)


def asked_by_both(model: str | None, adapter_id: str | None, service: Service) -> AskedAdapter | None:
    """Return the adapter that `model` and `adapter_id` name. Raises ValidationFailed where the two differ.

    A `model` that only stands for whatever is served, as `tgi` does, leaves the choice to `adapter_id`.
    """
    by_model = asked_adapter(model, service)
    if adapter_id is None:
        return by_model
    by_id = None if service.adapters.is_base(adapter_id) else AskedAdapter(adapter_id, "adapter_id")
    if model is None or is_placeholder(model) or (by_model is None and not service.adapters.is_base(model)):
        return by_id
    if (by_model and by_model.name) != (by_id and by_id.name):
        raise ValidationFailed(
            f"`adapter_id` is {adapter_id[:200]!r} and `model` is {model[:200]!r}, which is another one; leave one out",
            field="adapter_id",
        )
    return by_id


def model_not_found(name: str, service: Service) -> ModelNotFound:
    """Return the refusal of a name, with the names that are served."""
    names = [*service.settings.model_names, *(one.name for one in service.adapters.registry.listed())]
    served = ", ".join(repr(served) for served in names[:MAX_SHOWN_NAMES])
    further = ", ..." if len(names) > MAX_SHOWN_NAMES else ""
    return ModelNotFound(
        f"The model {name[:200]!r} does not exist: this server serves {served}{further}; see GET /v1/models"
    )
