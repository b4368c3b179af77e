"""The owner of the state: one line of the log for each change, and no line without a change."""

import itertools
import logging

import pytest
from textmill_router.health.health import Health
from textmill_router.health.states import HealthFacts, HealthState, Start


class Server:
    """Facts and a clock that a test sets."""

    def __init__(self) -> None:
        self.facts = HealthFacts()
        self.now_s = 0.0
        self.health = Health(lambda: self.facts, lambda: self.now_s)


def test_one_line_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    with caplog.at_level(logging.INFO):
        for now_s, facts in (
            (0.0, HealthFacts()),
            (1.0, HealthFacts(start=Start.LOADING)),
            (2.0, HealthFacts(start=Start.LOADING)),
            (4.0, HealthFacts(start=Start.DONE)),
            (9.0, HealthFacts(start=Start.DONE, num_away=1)),
            (9.5, HealthFacts(start=Start.DONE, num_away=1)),
        ):
            server.now_s, server.facts = now_s, facts
            server.health.look()
    lines = [(record.getMessage(), record.__dict__["was"], record.__dict__["for_s"]) for record in caplog.records]
    assert lines == [
        ("health is loading", "starting", 1.0),
        ("health is ready", "loading", 3.0),
        ("health is recovering", "ready", 5.0),
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert server.health.since_s == 0.5


def test_a_look_goes_as_far_as_the_facts_lead() -> None:
    server = Server()
    server.facts = HealthFacts(start=Start.DONE, is_full=True, has_room=False)
    assert server.health.look().state is HealthState.SATURATED


def test_no_facts_lead_in_a_circle() -> None:
    flags = (False, True)
    for start, (groups, away), full, room, leaving, broken in itertools.product(
        Start, [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)], flags, flags, flags, flags
    ):
        if full and room:
            continue  # no server is both
        server = Server()
        server.facts = HealthFacts(start, groups, away, full, room, leaving, broken)
        assert server.health.look() == server.health.look()
