"""Numbers and histograms of steps, tokens and recoveries. The engine loop writes them; a scrape reads them."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram
from textmill_router.scheduler.plan import Plan, StepResult

BATCH_BOUNDS = tuple(float(size) for size in range(1, 1025))


class StepKind(StrEnum):
    """The kind of a step. A step that computed prompt tokens is a prefill, also when other rows of the step decoded."""

    PREFILL = "prefill"
    DECODE = "decode"


class StepMetrics:
    """Counters and histograms that only the engine loop writes.

    Durations are in seconds. A kind of step that never ran has no entry.
    """

    def __init__(self) -> None:
        self.num_steps: Counter[StepKind] = Counter()
        self.num_failed_steps: Counter[StepKind] = Counter()
        self.num_concats = 0
        self.num_memory_faults = 0
        self.num_outputs_by_skipped: Counter[int] = Counter()  # outputs by tokens beyond the first
        self.next_size = Histogram(BATCH_BOUNDS)
        self.inter_token = Histogram(DURATION_BOUNDS_S)
        self.recovery = Histogram(DURATION_BOUNDS_S)  # from the loss of a stream until the next Hello
        self.step_s: dict[StepKind, Histogram] = {}
        self.forward_s: dict[StepKind, Histogram] = {}
        self.text_s: dict[StepKind, Histogram] = {}
        self.planning_s: dict[StepKind, Histogram] = {}
        self.concat_s: dict[StepKind, Histogram] = {}

    def on_step(self, kind: StepKind, result: StepResult, planning_s: float) -> None:
        """Count a result that was read and answered with plans."""
        self.num_steps[kind] += 1
        _observe(self.planning_s, kind, planning_s)
        if result.errors:
            self.num_failed_steps[kind] += 1
            return
        _observe(self.step_s, kind, result.step_s)
        _observe(self.forward_s, kind, result.device_s)

    def on_lost_step(self, kind: StepKind) -> None:
        """Count the step that was lost because the stream ended while requests ran."""
        self.num_steps[kind] += 1
        self.num_failed_steps[kind] += 1

    def on_plans(self, plans: Iterable[Plan], num_running: int, planning_s: float) -> None:
        """Count the admissions of new plans; `num_running` includes the requests that these plans admit."""
        num_admitted = sum(len(plan.admits) for plan in plans)
        if not num_admitted:
            return
        self.next_size.observe(num_admitted)
        if num_running > num_admitted:
            self.num_concats += 1
            _observe(self.concat_s, StepKind.PREFILL, planning_s)

    def on_text(self, kind: StepKind, text_s: float) -> None:
        """Note how long the readers took for the outputs of a step."""
        _observe(self.text_s, kind, text_s)


def _observe(histograms: dict[StepKind, Histogram], kind: StepKind, value: float) -> None:
    histogram = histograms.get(kind)
    if histogram is None:
        histogram = histograms[kind] = Histogram(DURATION_BOUNDS_S)
    histogram.observe(value)
