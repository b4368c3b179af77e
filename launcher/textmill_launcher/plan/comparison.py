"""At the start of a server: the plan beside what the shards measured, and a warning where the two differ."""

import json
import logging
import re
from collections.abc import Mapping

from textmill_launcher.child_arguments import ModelFolder
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import LaunchError
from textmill_launcher.plan.report import Plan, make_plan, size
from textmill_launcher.plan.source import read_folder
from textmill_launcher.settings import Settings

TOLERANCE = 0.10
MEASURED = "memory planned"  # the shard's log line with its measurements
_FIELDS = ("weight_bytes", "step_bytes", "num_kv_tokens", "kv_bytes")

log = logging.getLogger(__name__)


class PlanComparison:
    """Reads the log lines of the shards, and logs the plan when rank 0 has measured its memory."""

    def __init__(self, settings: Settings, model: ModelFolder, num_shard: int) -> None:
        self._settings = settings
        self._model = model
        self._num_shard = num_shard

    def on_line(self, child: ChildName, line: str) -> None:
        """Take a line of a child. Only a measurement of rank 0 means anything here."""
        if child.rank != 0 or MEASURED not in line:
            return
        measured = read_measurement(line)
        if measured is None:
            return
        try:
            plan = make_plan(
                self._settings, read_folder(self._model.path, self._model.model_id), num_shard=self._num_shard
            )
        except (LaunchError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            log.info("memory: there is no plan to compare with (%s)", error)
            return
        compare(plan, measured)


def read_measurement(line: str) -> Mapping[str, int] | None:
    """Return the numbers of a shard's line, in JSON or in text, or None where the line has not all of them."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = {name: int(number) for name, number in re.findall(r"\b(\w+)=(\d+)", line)}
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), int) for name in _FIELDS):
        return None
    return {name: entry[name] for name in _FIELDS}


def compare(plan: Plan, measured: Mapping[str, int]) -> None:
    """Log a line for each part of the memory, planned and measured, and a warning for each that differs much.

    The step of a model that code in Python runs varies from start to start, so that a difference there means nothing.
    """
    needs = plan.start_needs
    per_token = measured["kv_bytes"] // max(1, measured["num_kv_tokens"])
    rows = (
        ("weights", needs.weight_bytes, measured["weight_bytes"]),
        ("largest step", needs.step_bytes, measured["step_bytes"]),
        ("keys and values of a token", needs.kv_bytes_per_token, per_token),
    )
    for name, planned, found in rows:
        log.info("memory: %s: planned %s, measured %s", name, size(planned), size(found))
    log.info("memory: keys and values take %s: %d tokens", size(measured["kv_bytes"]), measured["num_kv_tokens"])
    for name, planned, found in rows:
        if name == "largest step" and needs.is_step_rough:
            continue
        if abs(planned - found) > TOLERANCE * found:
            log.warning(
                "memory: `launcher plan` is %.0f %% off for this model: %s",
                100 * abs(planned - found) / max(1, found),
                name,
            )
