"""Answers in pieces."""

import json
from array import array
from typing import Any

import pytest
from textmill_router.api.tasks import long_answer
from textmill_router.api.tasks.long_answer import json_pieces
from textmill_router.tasks.row_results import Grid

ROWS = [[0.5, 1.25, -3.0], [1e-7, 2.0, 4.0]]
GRID = Grid(3, array("d", [number for row in ROWS for number in row]))


@pytest.mark.parametrize("piece_bytes", [1, 30, 1 << 20])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"predicted_depth": GRID, "depth": "ü\u2028"}, {"predicted_depth": ROWS, "depth": "ü\u2028"}),
        ([{"predicted_depth": GRID}, {"predicted_depth": GRID}], [{"predicted_depth": ROWS}] * 2),
        ([], []),
        ({}, {}),
        (GRID, ROWS),
        ([1, None, [True]], [1, None, [True]]),
    ],
    ids=["grid and text", "two grids", "empty list", "empty object", "grid alone", "no numbers"],
)
def test_pieces_are_the_json_of_the_value(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, value: Any, expected: Any
) -> None:
    monkeypatch.setattr(long_answer, "PIECE_BYTES", piece_bytes)
    pieces = list(json_pieces(value))
    assert json.loads(b"".join(pieces)) == expected
    assert all(piece.decode() for piece in pieces)
    assert len(pieces) == 1 or piece_bytes < 1 << 20


def test_pieces_end_soon_after_their_size() -> None:
    row = json.dumps([0.5] * 1000).encode()
    grid = Grid(1000, array("f", [0.5] * 3_000_000))
    pieces = list(json_pieces(grid))
    assert len(pieces) == 3
    assert max(map(len, pieces)) <= long_answer.PIECE_BYTES + len(row)
