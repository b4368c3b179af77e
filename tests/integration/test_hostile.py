"""Some seconds of hostile input beside a normal client, after which the server holds what the server held before.

`make hostile` runs longer.
"""

import pytest

from tests.soak.hostile import Report, hostile

SECONDS = 15.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return hostile(SECONDS, 5, tmp_path_factory.mktemp("hostile"))


@pytest.mark.faults
@pytest.mark.slow  # starts a server, which imports torch, and attacks the server for some seconds
def test_hostile_clients_get_their_answers_and_the_normal_client_notices_nothing(report: Report) -> None:
    assert report.wrong == []
    assert sum(report.attacks.values()) > 50
    assert report.num_usual_calls > 50


@pytest.mark.faults
@pytest.mark.slow  # takes the report of the test before
def test_descriptors_of_each_kind_and_memory_are_what_they_were(report: Report) -> None:
    assert report.grown == []
    assert report.before.keys() == report.after.keys() >= {"launcher", "router", "shard", "compiler 0", "compiler 1"}
    assert all(report.before["router"].descriptors[kind] for kind in ("tcp", "tcp listener", "unix", "pipe", "file"))
