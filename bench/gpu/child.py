"""`python -m bench.gpu.child`: runs parts of the benchmark, told by one line on standard input, as `messages.py` says.

What the libraries print goes to the standard error, so that the standard output has the lines for the supervisor alone.
"""

import faulthandler
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Protocol, TextIO

from bench.gpu.messages import (
    BROKEN,
    END,
    FAILED,
    ITEM,
    LEFT_OUT,
    NOT_RUN,
    PART,
    RATES,
    REFUSED,
    ROW,
    CannotRun,
    Job,
    Told,
)
from bench.gpu.report import Row

LEAST_LEFT_S = 20.0  # with less time than this left no part begins


class Workbench(Protocol):
    """What the parts of a process share: the device, and models once they are made."""

    def parts(self, begin: Callable[[str], None]) -> Mapping[str, Callable[[], Iterator[Row]]]:
        """Return the parts by name. `begin` is to be called before each item of a part that has items."""
        ...

    @property
    def left_s(self) -> float:
        """Seconds until the end of the run."""
        ...

    @property
    def rates(self) -> Mapping[str, float]: ...

    def check_device(self) -> None:
        """Raise what the device says where it answers no more."""
        ...

    def forget_models(self) -> None:
        """Free what a failed part may have left in an odd state."""
        ...


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks where a part hangs, before it ends the process
    signal.signal(signal.SIGTERM, _leave)
    job = Job.of_line(sys.stdin.readline())
    if job.is_dry:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when the kernels are defined
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s %(reason)s", defaults={"reason": ""}))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        bench: Workbench = importlib.import_module(job.table).start(job)
    except ImportError as error:
        logging.getLogger(__name__).exception("an import fails")
        out.write(Told(REFUSED, f"a package is missing, or does not fit: {error}").to_line())
        return 0
    except CannotRun as error:
        out.write(Told(REFUSED, str(error)).to_line())
        return 0
    return _run(bench, job, out)


def _run(bench: Workbench, job: Job, out: TextIO) -> int:
    def tell(told: Told) -> None:
        out.write(told.to_line())

    parts = bench.parts(lambda item: tell(Told(ITEM, item)))
    for name in job.parts:
        if bench.left_s < LEAST_LEFT_S and not job.is_dry:
            tell(Told(LEFT_OUT, name))
            continue
        tell(Told(PART, name))
        try:
            reason = _reason_of_failure(parts[name], tell)
        except CannotRun as error:
            tell(Told(NOT_RUN, str(error)))
            continue
        tell(Told(RATES, rates=bench.rates))
        if reason is None:
            tell(Told(END, name))
            continue
        try:
            bench.check_device()
        except Exception as error:
            tell(Told(BROKEN, f"{reason}; then the device answered: {_first_line(error)}"))
            return 1
        tell(Told(FAILED, reason))
        bench.forget_models()
    return 0


def _reason_of_failure(part: Callable[[], Iterator[Row]], tell: Callable[[Told], None]) -> str | None:
    """Run a part. Returns None, or the reason why it failed. The traceback, which holds tensors, is free then.

    Raises CannotRun.
    """
    try:
        for row in part():
            tell(Told(ROW, row=row))
    except CannotRun:
        raise
    except Exception as error:  # the other parts still tell something
        logging.getLogger(__name__).exception("a part failed")
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that `with` gives back servers and folders


if __name__ == "__main__":
    sys.exit(main())
