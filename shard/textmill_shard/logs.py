"""The log of a shard. Each line carries the shard's rank."""

import logging
import sys
from typing import TextIO

from textmill_shard.log_lines import JsonFormatter, TextFormatter


def configure_logging(*, rank: int, json_output: bool, level: str, stream: TextIO = sys.stderr) -> None:
    """Send the shard's lines from a level up to one stream. stdout stays free for the folder that `convert` prints."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter(lambda record: {"target": record.name, "rank": rank})
        if json_output
        else TextFormatter(lambda record: f"{record.name} rank={rank}")
    )
    logger = logging.getLogger("textmill_shard")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
