"""The intervals that count as decode steps, and the table that is made of them."""

import pytest

from bench.http_stream import StreamRecord
from bench.token_profile import PARTS, decode_intervals_ms, table


def record(*token_times_s: float) -> StreamRecord:
    return StreamRecord(0.0, 0.0, token_times_s, 9.0, 200, 4, len(token_times_s), "", None)


def test_only_intervals_in_which_all_decode_count():
    early = record(1.0, 1.5, 2.0, 2.01, 2.02, 2.03)
    late = record(2.005, 2.016, 2.026, 2.5, 3.0)
    # The intervals lie between 2.005, the time of the last first token, and 2.03, the end of the first request.
    assert decode_intervals_ms([early, late]) == pytest.approx([10, 10, 11, 10])


def test_table_has_a_row_per_part_and_a_column_per_number_of_streams():
    figures = {part: float(number) for number, part in enumerate(PARTS)}
    lines = table({1: figures, 8: {part: 10 * value for part, value in figures.items()}}).splitlines()
    assert lines[0] == "| ms per decode step | 1 streams | 8 streams |"
    assert lines[3] == f"| {PARTS[1]} | 1.00 | 10.00 |"
    assert len(lines) == 2 + len(PARTS)
