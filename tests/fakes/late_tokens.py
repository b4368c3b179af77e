"""A device whose tokens reach the host late: marks of a CPU for which the reader of the tokens waits."""

import threading
import time
from dataclasses import dataclass, field
from random import Random

import torch
from textmill_shard.engine.token_reader import HostMark, Mark, TokenReader

WAIT_S = 10.0


@dataclass
class LateMarks:
    """Makes marks behind which the host waits, by random times or for one release of the gate each.

    `TokenReader` asks for two marks a step, and waits at the second.
    """

    random: Random = field(default_factory=lambda: Random(0))
    longest_s: float = 0.002
    gate: threading.Semaphore | None = None
    num_waits: int = 0

    def __call__(self, device: torch.device) -> Mark:
        return _LateMark(time.monotonic_ns(), self)

    def hold(self) -> None:
        """Wait as the device would let the host wait."""
        self.num_waits += 1
        if self.gate is not None:
            assert self.gate.acquire(timeout=WAIT_S), "nobody lets the tokens through"
        else:
            time.sleep(self.random.random() * self.longest_s)


class _LateMark(HostMark):
    def __init__(self, at_ns: int, marks: LateMarks) -> None:
        object.__setattr__(self, "at_ns", at_ns)
        object.__setattr__(self, "_marks", marks)

    __slots__ = ("_marks",)

    def wait(self) -> None:
        self._marks.hold()


def late_reader(seed: int = 0, *, longest_s: float = 0.002) -> TokenReader:
    """Return a reader whose tokens come after random times."""
    return TokenReader(torch.device("cpu"), LateMarks(Random(seed), longest_s))


def gated_reader(gate: threading.Semaphore) -> TokenReader:
    """Return a reader whose tokens come after one release of the gate for each step."""
    return TokenReader(torch.device("cpu"), LateMarks(gate=gate))
