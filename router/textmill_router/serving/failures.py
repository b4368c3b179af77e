"""Failures of requests after their admission, as the errors that clients see."""

from textmill_router.errors import DeadlineMissed, GenerationBroke, InternalError, RequestError, ShuttingDown
from textmill_router.request import Failure, FailureCode


def generation_error(failure: Failure) -> RequestError:
    """Return the error that tells the client of a failure after admission."""
    match failure.code:
        case FailureCode.LATE:
            return DeadlineMissed(failure.message)
        case FailureCode.SHUTDOWN:
            return ShuttingDown(failure.message, retry_after_s=1)
        case FailureCode.PLAN_REJECTED:
            return InternalError(failure.message)
        case (
            FailureCode.NOT_FINITE
            | FailureCode.INTERNAL
            | FailureCode.SUSPECT
            | FailureCode.ADAPTER_LOST
            | FailureCode.MEDIA
        ):
            return GenerationBroke(failure.message)
