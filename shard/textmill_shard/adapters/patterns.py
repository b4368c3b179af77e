"""Finds the pattern that fits each module's path, in a process that is killed when it takes too long."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from textmill_shard.adapters import pattern_worker
from textmill_shard.model.adapter import AdapterRefused

MATCH_TIMEOUT_S = 1.0
START_TIMEOUT_S = 20.0  # of a Python without packages, on a machine that is busy


def first_fitting(
    patterns: Sequence[str], names: Sequence[str], *, timeout_s: float = MATCH_TIMEOUT_S
) -> list[str | None]:
    """Return for each name the first pattern that fits, or None.

    A pattern fits as `re.match(r"(.*\\.)?(pattern)$", name)` does, which is PEFT's rule for the keys of `rank_pattern`
    and `alpha_pattern`. Raises AdapterRefused for a pattern that is no regular expression, and for patterns that take
    longer than `timeout_s`.
    """
    if not patterns:
        return [None] * len(names)
    answer = _ask({"patterns": list(patterns), "names": list(names)}, timeout_s)
    if answer is None:
        raise AdapterRefused(
            f"the keys of rank_pattern or alpha_pattern take more than {timeout_s:g} s to match, or too much memory: "
            "write the names of the modules there"
        )
    if "bad" in answer:
        pattern = json.dumps(patterns[answer["bad"]])
        raise AdapterRefused(
            f"the key {pattern[:80]} of rank_pattern or alpha_pattern is no pattern: {answer['reason']}"
        )
    return [None if number is None else patterns[number] for number in answer["found"]]


def _ask(question: dict[str, list[str]], timeout_s: float) -> dict[str, Any] | None:
    """Return the answer of a fresh process, or None where the process was killed or died."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", pattern_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        killer = threading.Timer(START_TIMEOUT_S, process.kill)
        killer.start()
        try:
            process.stdout.readline()
            killer.cancel()
            killer = threading.Timer(timeout_s, process.kill)
            killer.start()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            killer.cancel()
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    if not line.endswith(b"\n"):
        return None
    answer: dict[str, Any] = json.loads(line)
    return answer
