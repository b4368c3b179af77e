"""Writes docs/health.md from the table of health: `python -m textmill_router.health.page`."""

import sys

from textmill_router.health.group_watch import MAX_SILENCE_S, MAX_STEP_S
from textmill_router.health.states import EDGES, ROWS, HealthState

_HEAD = """# Health

The server is always in one of nine states. `GET /health` and its parts show the state, `/info` has the state as
`health_state`, the metric `textmill_health_state` has the value 1 for the state and 0 for the others, and each change
is one line of the log. This page is made from `router/textmill_router/health/states.py` by `make health-page`; a test
holds the page up to date.

No probe asks for an API key, waits for the queue or generates a token, so a full server answers at once.

## What each probe answers

| State | Meaning | `/health`, `/ping`, `/` | `/health/live` | `/health/ready` | `/health/startup` |
|---|---|---|---|---|---|
"""

_PROBES = """
- `/health` means what text-generation-inference (TGI) means: 200 with an empty body, or 503 with `error` and
  `error_type`, to which Textmill adds `state`, `phase` and, while the weights load, `percent`.
- The other three answer the same facts with each status: `state`, `since_s` (seconds in this state), `phase` and
  perhaps `percent`.
- `/health/live` is 503 only where a new start of the server helps. Two watchdogs stand behind the answer. A shard that
  served once and is silent for {silence:g} s, or a step that has not ended after {step:g} s, makes the server dead. The
  router's event loop answers the probe itself, so a loop that hangs answers nothing, and the probe runs into its
  timeout; a thread then logs the place where the loop stands.
- `/health/ready` is for load balancers: 503 from the moment of SIGTERM on, and while no group of shards serves. A full
  server is ready, because its queue is bounded and its refusals are quick. A server whose steps do not end is not
  ready.
- `/health/startup` is 200 once the server has been ready for the first time.

A group of shards is the `--num-shard` processes that hold one copy of the model. A group is away while its process is
lost, loads again or has not ended a step within the limit of its steps.

## The states

```mermaid
stateDiagram-v2
    [*] --> {first}
"""

_TAIL = """```

Of two edges that are due the one that stands first is taken. No edge leads out of `draining`, because the process ends
there.
"""


def write_page() -> str:
    """Return the whole page."""
    lines = [_HEAD.rstrip("\n")]
    for row in ROWS:
        answers = (row.health, row.live, row.ready, row.startup)
        cells = " | ".join("200" if is_yes else "503" for is_yes in answers)
        lines.append(f"| `{row.state}` | {row.meaning} | {cells} |")
    lines.append(_PROBES.format(silence=MAX_SILENCE_S, step=MAX_STEP_S, first=HealthState.STARTING).rstrip("\n"))
    lines += [f"    {edge.source} --> {edge.target}: {edge.because}" for edge in EDGES]
    lines.append(_TAIL.rstrip("\n"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(write_page())
