"""What the launcher tells the router: one JSON object a line, on the router's standard input.

The router sees for itself that a shard is lost and when the shard is back. Only the launcher knows why, and whether a
group starts again.
"""

import json

from textmill_launcher.causes import Loss


def shards_lost(replica: int, loss: Loss) -> str:
    """Return the note of a group that is lost and starts again."""
    return json.dumps({"note": "shards_lost", "replica": replica, "reason": loss.reason, "cause": loss.summary})


def shards_given_up(replica: int, loss: Loss) -> str:
    """Return the note of a group that does not start again."""
    return json.dumps({"note": "shards_given_up", "replica": replica, "cause": loss.summary})
