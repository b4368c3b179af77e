"""The expressions of a Grafana dashboard."""

import re
from collections.abc import Iterator
from typing import Any


def panel_expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield title and expression of each target, with a number in the place of Grafana's interval."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "5m")


def variable_queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and query of each variable, `label_values(metric, label)` as `count by (label) (metric)`."""
    for variable in dashboard["templating"]["list"]:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", str(variable.get("definition", "")))
        if found is not None:
            yield f"variable {variable['name']}", f"count by ({found[2]}) ({found[1]})"
