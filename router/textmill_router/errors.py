"""The errors that end a call, as one tree. `http/error_responses.py` gives each error its status."""

from collections.abc import Mapping
from enum import Enum


class RequestError(Exception):
    """An error that ends one call. The message tells the client what was wanted, what was found and what to change."""


class Unauthorized(RequestError):
    """The API key is missing or wrong."""


class Forbidden(RequestError):
    """The operator has not allowed this."""


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


class UnknownTransferCoding(RequestError):
    """The body travels in a coding that the server cannot undo."""


class PayloadTooLarge(RequestError):
    """The body is longer than --payload-limit."""


class UnsupportedMediaType(RequestError):
    """The body is not declared to be JSON."""


class UnknownContentCoding(UnsupportedMediaType):
    """The body is compressed, or coded in another way."""


class InvalidJson(RequestError):
    """The body is not JSON."""


class ValidationFailed(RequestError):
    """A field has the wrong shape or breaks a rule.

    `field` is the path or name of the field, or empty when no single field is to blame.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class RuleBroken(ValidationFailed):
    """A request breaks a rule that all dialects share; each dialect fills in its own names of the fields.

    `sentence` has names in braces. `{field}` is the field to blame, a key of `facts` is the value of that fact, and any
    other name is a field of the request, under the field's name in TGI's dialect. A text that the client sent may stand
    in a fact only, because braces in the sentence itself would be read as names.
    """

    def __init__(self, sentence: str, *, field: str, **facts: object) -> None:
        super().__init__(sentence, field=field)
        self._sentence = sentence
        self._own_field = field
        self._facts = facts
        self._names: Mapping[str, str] = {}

    def reword(self, names: Mapping[str, str], sentence: str | None = None) -> None:
        """Put a dialect's names into the sentence. `names` maps TGI's names; `sentence` replaces the sentence."""
        self._names = names
        self._sentence = self._sentence if sentence is None else sentence
        self.field = names.get(self._own_field, self._own_field)

    def __str__(self) -> str:
        return self._sentence.format_map(_Words({**self._names, **self._facts, "field": self.field}))


class _Words(dict[str, object]):
    """The words that replace the names in braces. A field that `names` does not list keeps TGI's name."""

    def __missing__(self, name: str) -> str:
        return name


class OverBudget(RuleBroken):
    """The prompt is longer than its limit, or prompt and new tokens together are longer than the window.

    `max_tokens` is the limit that was broken, and `window_tokens` the limit of prompt and new tokens together. `found`
    is a sentence, with names in braces, that says how many tokens the call asked for. `{the_prompt}` is the prompt.
    """

    def __init__(
        self, sentence: str, *, field: str, max_tokens: int, window_tokens: int, found: str, **facts: object
    ) -> None:
        super().__init__(
            sentence, field=field, max_tokens=max_tokens, window_tokens=window_tokens, the_prompt="the prompt", **facts
        )
        self.max_tokens = max_tokens
        self.found = found

    def name_prompt(self, number: int, num_prompts: int) -> None:
        """Say which prompt of a call is meant, counted from 1. A call with one prompt has nothing to say."""
        if num_prompts > 1:
            self._facts["the_prompt"] = f"prompt {number} of {num_prompts}"


class ImageCode(Enum):
    """Why an image is refused, in the words of `code` on /v1."""

    INVALID = "invalid_image"
    TOO_LARGE = "image_too_large"
    URL_NOT_ALLOWED = "image_url_not_allowed"
    FETCH_FAILED = "image_fetch_failed"


class ImageRefused(ValidationFailed):
    """An image of the call cannot be used. `field` is the path of its URL in the body."""

    def __init__(self, message: str, *, field: str, code: ImageCode) -> None:
        super().__init__(message, field=field)
        self.code = code

    def of_image(self, number: int) -> "ImageRefused":
        """Return this refusal with the number of the image in a text whose images have one path."""
        return ImageRefused(f"image {number} in {self}", field=self.field, code=self.code)


class BadAdapterCall(ValidationFailed):
    """A call that loads or unloads an adapter lacks a field, or gives a name that is taken."""


class TooManyPrompts(ValidationFailed):
    """A call has more prompts, or texts of a task that writes, than --max-client-batch-size."""


class TooManyRows(ValidationFailed):
    """A call of a task has more rows than --max-task-rows."""


class WrongTask(ValidationFailed):
    """The model cannot do what was asked. The text names the model's task and the routes that serve it."""


class StreamOptionsRefused(ValidationFailed):
    """A call of /v1 has `stream_options` and asks for no stream."""


class SuffixRefused(ValidationFailed):
    """The model cannot fill in before a suffix."""


class TemplateFailed(RequestError):
    """There is no chat template, or it does not take this conversation."""


class ToolError(RequestError):
    """A tool that the call names is not declared. `field` is the field to blame."""

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


class Recovering(RetryLater):
    """The shards start again, and as many requests wait for them as may wait."""


class ModelLoading(RetryLater):
    """The shards are not ready yet.

    `phase` says what the shards do now, and `estimated_s` is a guess of the seconds until they are ready.
    """

    def __init__(self, message: str, *, phase: str, estimated_s: float, retry_after_s: int) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.phase = phase
        self.estimated_s = estimated_s


class ShuttingDown(RetryLater):
    """The server finishes the calls that run and takes no new call."""


class DeadlineMissed(RequestError):
    """The answer could not be, or was not, complete within the time that the client gave."""


class GenerationBroke(RequestError):
    """The shard failed this request."""


class InternalError(RequestError):
    """A mistake of the server ended this call."""
