"""The names that a call may use for the model."""

from textmill_router.errors import ModelNotFound
from textmill_router.settings import Settings


def check_model(name: str | None, settings: Settings) -> None:
    """Raise ModelNotFound for another name than the model's with --strict-model. Without the flag any name will do."""
    if settings.strict_model and name is not None and name not in settings.model_names:
        raise model_not_found(name, settings)


def model_not_found(name: str, settings: Settings) -> ModelNotFound:
    served = ", ".join(repr(served) for served in settings.model_names)
    return ModelNotFound(f"The model {name[:200]!r} does not exist: this server serves {served}; see GET /v1/models")
