"""Each edge of the table of health, what each probe answers in each state, and the page made from the table."""

from pathlib import Path

import pytest
from textmill_router.health.page import write_page
from textmill_router.health.states import EDGES, ROW_OF, HealthFacts, HealthState, Start, next_edge

REPOSITORY = Path(__file__).parents[4]
LOADED = HealthFacts(start=Start.DONE)
AWAY = HealthFacts(start=Start.DONE, num_away=1)
ONE_OF_TWO = HealthFacts(start=Start.DONE, num_groups=2, num_away=1)
BOTH = HealthFacts(start=Start.DONE, num_groups=2, num_away=2)
FULL = HealthFacts(start=Start.DONE, is_full=True, has_room=False)
LEAVING = HealthFacts(start=Start.DONE, is_leaving=True)
BROKEN = HealthFacts(start=Start.DONE, is_beyond_help=True)

# From, to, and facts that make exactly this change due.
CHANGES = [
    ("starting", "loading", HealthFacts(start=Start.LOADING)),
    ("starting", "warming", HealthFacts(start=Start.WARMING)),
    ("starting", "ready", LOADED),
    ("starting", "draining", HealthFacts(is_leaving=True)),
    ("starting", "dead", HealthFacts(is_beyond_help=True)),
    ("loading", "starting", HealthFacts()),
    ("loading", "warming", HealthFacts(start=Start.WARMING)),
    ("loading", "ready", LOADED),
    ("loading", "draining", HealthFacts(start=Start.LOADING, is_leaving=True)),
    ("loading", "dead", HealthFacts(start=Start.LOADING, is_beyond_help=True)),
    ("warming", "starting", HealthFacts()),
    ("warming", "loading", HealthFacts(start=Start.LOADING)),
    ("warming", "ready", LOADED),
    ("warming", "draining", HealthFacts(start=Start.WARMING, is_leaving=True)),
    ("warming", "dead", HealthFacts(start=Start.WARMING, is_beyond_help=True)),
    ("ready", "saturated", FULL),
    ("ready", "recovering", AWAY),
    ("ready", "degraded", ONE_OF_TWO),
    ("ready", "draining", LEAVING),
    ("ready", "dead", BROKEN),
    ("saturated", "ready", LOADED),
    ("saturated", "recovering", BOTH),
    ("saturated", "degraded", ONE_OF_TWO),
    ("saturated", "draining", LEAVING),
    ("saturated", "dead", BROKEN),
    ("recovering", "ready", LOADED),
    ("recovering", "degraded", ONE_OF_TWO),
    ("recovering", "draining", LEAVING),
    ("recovering", "dead", BROKEN),
    ("degraded", "ready", LOADED),
    ("degraded", "recovering", BOTH),
    ("degraded", "draining", LEAVING),
    ("degraded", "dead", BROKEN),
    ("dead", "starting", HealthFacts()),
    ("dead", "recovering", AWAY),
    ("dead", "draining", LEAVING),
]
# Facts under which a state stays.
STAYS = [
    ("starting", HealthFacts()),
    ("loading", HealthFacts(start=Start.LOADING)),
    ("warming", HealthFacts(start=Start.WARMING)),
    ("ready", LOADED),
    ("saturated", FULL),
    ("saturated", HealthFacts(start=Start.DONE, has_room=False)),  # a single place that comes and goes is no change
    ("draining", LEAVING),
    ("draining", HealthFacts(start=Start.DONE, is_leaving=True, num_away=1, is_beyond_help=True)),
    ("recovering", AWAY),
    ("recovering", BOTH),
    ("degraded", ONE_OF_TWO),
    ("degraded", HealthFacts(start=Start.DONE, num_groups=2, num_away=1, is_full=True, has_room=False)),
    ("dead", BROKEN),
]
# State: GET /health, /health/live, /health/ready, /health/startup, as users of the probes are promised.
ANSWERS = {
    "starting": (503, 200, 503, 503),
    "loading": (503, 200, 503, 503),
    "warming": (503, 200, 503, 503),
    "ready": (200, 200, 200, 200),
    "saturated": (200, 200, 200, 200),
    "draining": (503, 200, 503, 200),
    "recovering": (503, 200, 503, 200),
    "degraded": (200, 200, 200, 200),
    "dead": (503, 503, 503, 503),
}


@pytest.mark.parametrize(("source", "target", "facts"), CHANGES)
def test_edge(source: str, target: str, facts: HealthFacts) -> None:
    edge = next_edge(HealthState(source), facts)
    assert edge is not None
    assert (edge.source, edge.target) == (source, target)


def test_every_edge_of_the_table_is_driven_above() -> None:
    assert {(source, target) for source, target, _ in CHANGES} == {(edge.source, edge.target) for edge in EDGES}
    assert len(CHANGES) == len(EDGES)


@pytest.mark.parametrize(("state", "facts"), STAYS)
def test_state_stays(state: str, facts: HealthFacts) -> None:
    assert next_edge(HealthState(state), facts) is None


def test_answers_of_the_probes() -> None:
    shown = {
        state.value: tuple(200 if is_yes else 503 for is_yes in (row.health, row.live, row.ready, row.startup))
        for state, row in ROW_OF.items()
    }
    assert shown == ANSWERS
    assert set(shown) == {state.value for state in HealthState}


def test_page_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "health.md").read_text() == write_page(), "run make health-page"
