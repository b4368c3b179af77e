"""What can go wrong with a call, as one tree. `http/error_responses.py` alone knows statuses and bodies."""


class RequestError(Exception):
    """Ends one call; the message is for the client: what was wanted, what was found, what to change."""


class Unauthorized(RequestError):
    """The API key is missing or wrong."""


class RouteNotFound(RequestError):
    """No route has this path."""


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimedOut(RequestError):
    """The client did not finish its header or body in time."""


class HeaderTooLarge(RequestError):
    """The request header has too many fields or bytes."""


class BadHttp(RequestError):
    """The bytes on the connection are not HTTP."""


class PayloadTooLarge(RequestError):
    """The body is longer than --payload-limit."""


class UnsupportedMediaType(RequestError):
    """The body is not declared to be JSON."""


class InvalidJson(RequestError):
    """The body is not JSON."""


class ValidationFailed(RequestError):
    """A field has the wrong shape or breaks a rule. `field` is its path or name, empty when none is to blame."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class OverBudget(ValidationFailed):
    """The prompt, or prompt and new tokens together, are longer than the window.

    `max_tokens` is the limit broken, `window_tokens` the limit of both together; `found` says what was asked for.
    """

    def __init__(self, message: str, *, field: str, max_tokens: int, window_tokens: int, found: str) -> None:
        super().__init__(message, field=field)
        self.max_tokens = max_tokens
        self.window_tokens = window_tokens
        self.found = found


class TooManyPrompts(ValidationFailed):
    """A call of /v1/completions has more prompts than --max-client-batch-size."""


class SuffixRefused(ValidationFailed):
    """The model cannot fill in before a suffix."""


class TemplateFailed(RequestError):
    """There is no chat template, or it does not take this conversation."""


class ToolError(RequestError):
    """A tool is not declared, or tools stand beside something that they exclude. `field` is the name to blame."""

    def __init__(self, message: str, *, field: str = "tools") -> None:
        super().__init__(message)
        self.field = field


class ModelNotFound(RequestError):
    """No model of this name is served."""


class RetryLater(RequestError):
    """The server cannot take the call now. `retry_after_s` is in whole seconds, at least 1."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(RetryLater):
    """No permit is free, or the waiting queue is full."""


class ModelLoading(RetryLater):
    """The shards are not ready yet; `phase` says what they do, `estimated_s` how long it may take."""

    def __init__(self, message: str, *, phase: str, estimated_s: float, retry_after_s: int) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.phase = phase
        self.estimated_s = estimated_s


class ShuttingDown(RetryLater):
    """The server finishes what runs and takes nothing new."""


class GenerationBroke(RequestError):
    """The shard failed this request."""


class InternalError(RequestError):
    """A mistake of ours ended this call."""
