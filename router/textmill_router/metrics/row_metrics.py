"""The numbers of batches of rows, counted by the engine and shown by the scrape."""

from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram
from textmill_router.metrics.step_metrics import BATCH_BOUNDS


class RowMetrics:
    """Counts batches, rows and tokens. Durations are in seconds."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_tokens = 0
        self.num_repeated_rows = 0  # rows sent again because their shard was lost
        self.batch_size = Histogram(BATCH_BOUNDS)
        self.batch_duration = Histogram(DURATION_BOUNDS_S)
        self.recovery = Histogram(DURATION_BOUNDS_S)

    def on_batch(self, num_rows: int, num_tokens: int, duration_s: float) -> None:
        """Count a batch whose answers have come, and the time since it was sent."""
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.batch_size.observe(num_rows)
        self.batch_duration.observe(duration_s)
