"""Which parts a run has, in which order, how long each may take, and which of them share a process.

Correctness comes first, and its lanes run beside each other, because nothing is timed there and most of the time goes
to compiling. The parts that time come behind, one after the other in one process, which makes the large model once.
"""

from dataclasses import dataclass

KERNELS = "Kernels beside plain torch"
LOOP = "Tokens of the step loop"
FILES = "A model of files"
SERVER = "A server"
MACHINE = "Machine"
EQUALITIES = "Equal logits of a llama of random weights"
STEPS = "Steps of a llama of random weights"
STREAMS = "Streams"
TRANSFORMERS = "Continuous batching of transformers"
START = "What a start measures"
KERNEL_TIMES = "Kernels of steps"
TRACE = "Trace"
EXTRAS = "What requests and flags add to a step"

MAX_KERNEL_LANES = 4
CORES_OF_LANE = 2  # one computes, and the compiler's assembler runs beside it
DRY_FACTOR = 10.0  # by so much longer may a part take in Triton's interpreter


@dataclass(frozen=True, slots=True)
class Part:
    """One heading of the report."""

    name: str
    limit_s: float
    item_limit_s: float | None = None  # of one of its items; None: the part has none


@dataclass(frozen=True, slots=True)
class Lane:
    """Parts that one process runs one after the other, of each part the items `number`, `number + of` and so on."""

    parts: tuple[Part, ...]
    number: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a run. The lanes of a stage run beside each other, at most `width` at a time."""

    stages: tuple[tuple[Lane, ...], ...]
    width: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts in the order of the report."""
        names = [part.name for stage in self.stages for lane in stage for part in lane.parts]
        return tuple(dict.fromkeys(names))


def plan_run(*, is_dry: bool, num_cores: int) -> Plan:
    """Return the plan of a run. A dry run has the lanes of a machine with few cores."""
    width = 1 if is_dry else max(1, num_cores // CORES_OF_LANE)
    num_kernel_lanes = min(MAX_KERNEL_LANES, width)
    factor = DRY_FACTOR if is_dry else 1.0

    def part(name: str, limit_s: float, item_limit_s: float | None = None) -> Part:
        return Part(name, limit_s * factor, None if item_limit_s is None else item_limit_s * factor)

    kernels = part(KERNELS, 150, 40)
    checks = [Lane((kernels,), number, num_kernel_lanes) for number in range(num_kernel_lanes)]
    checks += [Lane((part(LOOP, 120),)), Lane((part(FILES, 120),)), Lane((part(SERVER, 150),))]
    times = [part(MACHINE, 40), part(EQUALITIES, 90), part(STEPS, 120), part(STREAMS, 100), part(START, 60)]
    times += [part(KERNEL_TIMES, 40), part(TRACE, 60), part(TRANSFORMERS, 120), part(EXTRAS, 60)]
    return Plan((tuple(checks), (Lane(tuple(times)),)), width)
