"""Compares the answer of a task with that of transformers' pipeline."""

from typing import Any

import pytest

TOLERANCE = 1e-5


def close(found: Any, expected: Any, path: str = "") -> None:
    """Compare two answers: numbers to the tolerance, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            close(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, value in enumerate(expected):
            close(found[index], value, f"{path}[{index}]")
    elif isinstance(expected, str | bool) or expected is None:
        assert found == expected, path
    else:
        assert found == pytest.approx(float(expected), abs=TOLERANCE), path
