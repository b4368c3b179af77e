"""The seam to the process that fetches or converts files before the shards start."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from textmill_launcher.child_name import ChildName

RunHelper = Callable[[ChildName, Sequence[str], Mapping[str, str]], Awaitable[str]]
"""Runs a download or a conversion to its end. Returns the last line of its output; raises `ModelFilesError`."""
