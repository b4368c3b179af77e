"""What ends a request after its admission, as the error that its client sees."""

from textmill_router.errors import GenerationBroke, InternalError, RequestError, ShuttingDown
from textmill_router.request import Failure, FailureCode


def generation_error(failure: Failure) -> RequestError:
    """The error that a failure after admission is to its client."""
    match failure.code:
        case FailureCode.SHUTDOWN:
            return ShuttingDown(failure.message, retry_after_s=1)
        case FailureCode.PLAN_REJECTED:
            return InternalError(failure.message)
        case FailureCode.NOT_FINITE | FailureCode.INTERNAL | FailureCode.SUSPECT:
            return GenerationBroke(failure.message)
