"""Which metrics and labels a PromQL expression names."""

import re

KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
_LABELS_IN = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_NAME = re.compile(r"(?<![\w:$])[A-Za-z_:][\w:]*(?!\s*\(|[\w:])")


def metrics_of(expression: str) -> set[str]:
    """Return the names of the series. What stands before a bracket is a function, what stands in braces is a label."""
    text = _STRING.sub("", expression)
    text = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", _LABELS_IN.sub("", text)))
    return set(_NAME.findall(text)) - KEYWORDS


def labels_of(expression: str) -> set[str]:
    """Return the labels that are matched or grouped by."""
    text = _STRING.sub("", expression)
    inside = [part for group in (_LABELS_IN, _GROUPING) for part in group.findall(text)]
    return {name for part in inside for name in re.findall(r"[A-Za-z_]\w*", part)}
