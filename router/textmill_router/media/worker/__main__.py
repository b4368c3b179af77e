"""A process of its own that reads images, so that an image that takes too long or too much can be ended with it.

`python -m textmill_router.media.worker` reads a `WorkerSetup` first and answers with `ProcessorFacts`, or with a
`reason`. Then it reads one image after the other and answers each with an `ImageAnswer` and the tensors, or with an
`ImageRefusal`. It ends with its input.
"""

import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from textmill_router.media.frames import NUM_BYTES, BrokenFrame, read_bytes, read_head, write_frame
from textmill_router.media.image_source import Detail
from textmill_router.media.worker_messages import ImageRefusal, WorkerSetup

if TYPE_CHECKING:
    from textmill_router.media.worker.image_reader import ImageReader


NICENESS = 10  # on a machine with few cores the steps of text and their delivery come before images


def run(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the input ends."""
    head = read_head(requests)
    setup = WorkerSetup(**{name: value for name, value in head.items() if name != NUM_BYTES})
    try:
        reader = _load(setup)
    except Exception as error:  # the text becomes the reason of a start that fails
        write_frame(answers, {"reason": f"{error or type(error).__name__}"})
        return
    _limit(resource.RLIMIT_AS, setup.memory_bytes)
    write_frame(answers, asdict(reader.facts))
    while True:
        try:
            head = read_head(requests)
            data = read_bytes(requests, head[NUM_BYTES])
        except BrokenFrame:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + setup.cpu_s)
        _answer(answers, reader, data, Detail(head["detail"]))


def _load(setup: WorkerSetup) -> "ImageReader":
    """Read the checkpoint's processor. transformers leaves out its parts of torch where torch cannot be imported."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from textmill_router.media.worker.image_reader import ImageReader

    return ImageReader(setup)


def _answer(answers: IO[bytes], reader: "ImageReader", data: bytes, detail: Detail) -> None:
    from textmill_router.media.worker.picture import PictureRefused

    try:
        answer, tensors = reader.read(data, detail)
    except PictureRefused as error:
        write_frame(answers, {"refusal": asdict(ImageRefusal(str(error), error.is_too_large))})
        return
    heads = [{"name": one.name, "dtype": one.dtype, "shape": one.shape, "num_bytes": len(one.data)} for one in tensors]
    write_frame(answers, {"answer": asdict(answer), "tensors": heads}, [one.data for one in tensors])


def _limit(which: int, most: int) -> None:
    """Set a soft limit of this process. The system ends a process that breaks the limit, or gives it no more memory."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Leave signals of the terminal to the router: the end of the input is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    os.nice(NICENESS)
    # Libraries write warnings to the standard output of the process; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    run(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
