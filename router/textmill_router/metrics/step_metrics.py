"""What the engine loop measures of steps and tokens: plain numbers and histograms, read at scrape."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram
from textmill_router.scheduler.plan import Plan, StepResult

_BATCH_SIZES = tuple(float(size) for size in range(1, 1025))


class Method(StrEnum):
    """A step that computed prompt tokens is a prefill, whatever else it did."""

    PREFILL = "prefill"
    DECODE = "decode"


class StepMetrics:
    """One owner, the engine loop. Durations in seconds; a method that was never seen has no entry."""

    def __init__(self) -> None:
        self.num_steps: Counter[Method] = Counter()
        self.num_failed_steps: Counter[Method] = Counter()
        self.num_concats = 0
        self.num_outputs_by_skipped: Counter[int] = Counter()  # outputs by tokens beyond the first
        self.next_size = Histogram(_BATCH_SIZES)
        self.inter_token = Histogram(DURATION_BOUNDS_S)
        self.step_s: dict[Method, Histogram] = {}
        self.forward_s: dict[Method, Histogram] = {}
        self.text_s: dict[Method, Histogram] = {}
        self.planning_s: dict[Method, Histogram] = {}
        self.concat_s: dict[Method, Histogram] = {}

    def on_step(self, method: Method, result: StepResult, planning_s: float) -> None:
        """A result was read and answered with plans."""
        self.num_steps[method] += 1
        _observe(self.planning_s, method, planning_s)
        if result.errors:
            self.num_failed_steps[method] += 1
            return
        _observe(self.step_s, method, result.step_s)
        _observe(self.forward_s, method, result.device_s)

    def on_lost_step(self, method: Method) -> None:
        """The stream ended while requests ran: the step in work is lost."""
        self.num_steps[method] += 1
        self.num_failed_steps[method] += 1

    def on_plans(self, plans: Iterable[Plan], num_running: int, planning_s: float) -> None:
        """Plans were made; `num_running` counts those that they admit too."""
        num_admitted = sum(len(plan.admits) for plan in plans)
        if not num_admitted:
            return
        self.next_size.observe(num_admitted)
        if num_running > num_admitted:
            self.num_concats += 1
            _observe(self.concat_s, Method.PREFILL, planning_s)

    def on_text(self, method: Method, text_s: float) -> None:
        """The outputs of a step are with their readers."""
        _observe(self.text_s, method, text_s)


def _observe(histograms: dict[Method, Histogram], method: Method, value: float) -> None:
    histogram = histograms.get(method)
    if histogram is None:
        histogram = histograms[method] = Histogram(DURATION_BOUNDS_S)
    histogram.observe(value)
