"""Whether the server has room for a call, asked before anything is made for the call."""

import math

from textmill_router.errors import Overloaded, RetryLater, RuleBroken, ValidationFailed
from textmill_router.http.api_keys import Caller
from textmill_router.scheduler.waiting_queue import QueueBound, QueueFull
from textmill_router.serving.call_terms import CallTerms
from textmill_router.serving.service import Backend, Service

_SENTENCES = {
    QueueBound.REQUESTS: "{found:.0f} requests wait, at most {limit:.0f} may (--max-queued-requests)",
    QueueBound.TOKENS: "requests of {found:.0f} tokens wait, at most {limit:.0f} tokens may (--max-queued-tokens)",
    QueueBound.SECONDS: "the wait would be about {found:.1f} s, at most {limit:g} s (--max-queue-seconds)",
}


def check_fits(service: Service, num_sequences: int, caller: Caller) -> None:
    """Raise ValidationFailed for a call of more sequences than the server ever takes at once from this caller."""
    for limit, flag in (
        (service.permits.most_for(caller), "--max-concurrent-requests"),
        (service.settings.max_queued_requests, "--max-queued-requests"),
    ):
        if num_sequences > limit:
            raise ValidationFailed(
                f"this request needs {num_sequences} sequences at once, and the most is {limit} ({flag}); ask for fewer"
            )


def check_prompts_fit(service: Service, num_tokens: int) -> None:
    """Raise RuleBroken for several sequences whose prompts are together longer than the queue may ever be.

    A sequence alone may be longer than the bound, because an empty queue takes any request.
    """
    limit = service.settings.max_queued_tokens
    if num_tokens > limit:
        raise RuleBroken(
            "the prompts of all sequences have {num_tokens} tokens together, and the most is {limit} "
            "(--max-queued-tokens); ask for fewer sequences or shorten `{inputs}`",
            field="inputs",
            num_tokens=num_tokens,
            limit=limit,
        )


def check_room(service: Service, backend: Backend, num_sequences: int, terms: CallTerms) -> None:
    """Raise Overloaded, Recovering or ShuttingDown when there is no room for so many sequences of this caller."""
    service.permits.check_room(num_sequences, terms.caller)
    try:
        backend.engine.check_room(num_sequences, terms.standing)
    except QueueFull as error:
        raise queue_full(service, error) from None


def queue_full(service: Service, error: QueueFull) -> RetryLater:
    """Return the refusal of a call that the queue does not take, with the bound that was hit and its value."""
    sentence = _SENTENCES[error.bound].format(found=error.found, limit=error.limit)
    message = f"Model is overloaded: {sentence}"
    if error.bound is QueueBound.SECONDS:
        retry_after_s = max(1, math.ceil(error.found - error.limit))
        return Overloaded(f"{message}; try again in {retry_after_s} s", retry_after_s=retry_after_s)
    return service.permits.overloaded(message)
