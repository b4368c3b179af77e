"""Parts of a benchmark that compute nothing: some crash, hang, run out of time or break the device."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.gpu.messages import CannotRun, Job
from bench.gpu.report import Row

ITEMS = ("a", "b", "c", "d", "e")
HANG_S = 600.0  # the supervisor ends the process long before


def start(job: Job) -> "FakeBench":
    if "refused" in job.parts:
        raise CannotRun("there is no GPU: take --dry")
    if "dies at the start" in job.parts:
        os.kill(os.getpid(), signal.SIGKILL)
    return FakeBench(job)


class FakeBench:
    """Makes a model once per process, as the real parts do: the rows of "model" count how often."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_broken = False
        self._ends_at = time.monotonic() + job.left_s
        self.rates: dict[str, float] = dict(job.rates)

    def parts(self, begin: Callable[[str], None]) -> Mapping[str, Callable[[], Iterator[Row]]]:
        return {
            "good": lambda: iter([Row("row", {"pid": str(os.getpid())}, is_fine=True)]),
            "measures": self._measures,
            "asks": lambda: iter([Row("rates", {"copy": self.rates.get("copy", 0.0)})]),
            "raises": self._raises,
            "cannot run": self._cannot_run,
            "tells its environment": lambda: iter(
                [
                    Row(
                        "environment",
                        {name: os.environ[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "USE_HUB_KERNELS")},
                    )
                ]
            ),
            "breaks the device": self._breaks,
            "hangs": self._hangs,
            "leaves": self._leaves,
            "items": lambda: self._items(begin, {}),
            "an item crashes": lambda: self._items(begin, {"b": lambda: os.kill(os.getpid(), signal.SIGSEGV)}),
            "an item hangs": lambda: self._items(begin, {"b": lambda: time.sleep(HANG_S)}),
            "all items crash": lambda: self._items(begin, dict.fromkeys(ITEMS, lambda: os._exit(3))),
        }

    @property
    def left_s(self) -> float:
        return HANG_S if "hangs" in self._job.parts else self._ends_at - time.monotonic()

    def check_device(self) -> None:
        if self._is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def forget_models(self) -> None:
        Path(self._job.trace_file).write_text("forgotten")

    def _measures(self) -> Iterator[Row]:
        self.rates["copy"] = 5.0
        yield Row("copy", {"GB/s": 5.0})

    def _raises(self) -> Iterator[Row]:
        yield Row("before", {})
        raise ZeroDivisionError("by nothing")

    def _cannot_run(self) -> Iterator[Row]:
        raise CannotRun("a compiler is missing")
        yield

    def _breaks(self) -> Iterator[Row]:
        yield Row("before", {})
        self._is_broken = True
        raise RuntimeError("no result")

    def _hangs(self) -> Iterator[Row]:
        yield Row("before", {})
        print("a library prints")
        time.sleep(HANG_S)

    def _leaves(self) -> Iterator[Row]:
        yield Row("pid", {"pid": str(os.getpid())})
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(HANG_S)

    def _items(self, begin: Callable[[str], None], ways: Mapping[str, Callable[[], object]]) -> Iterator[Row]:
        for item in ITEMS[self._job.number :: self._job.of]:
            if item in self._job.done:
                continue
            begin(item)
            if item in ways:
                ways[item]()
            yield Row(item, {"error": 0.0}, is_fine=True)
