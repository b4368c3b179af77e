"""DRY in each dialect: its fields reach the shard as numbers and ids, and texts that cannot break are refused."""

from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes.running_router import RunningRouter

FIELDS = {"dry_multiplier": 0.75, "dry_base": 1.5, "dry_allowed_length": 3}
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    with RunningRouter(tmp_path_factory.mktemp("dry")) as running:
        yield running


def post(router: RunningRouter, route: str, **fields: Any) -> httpx.Response:
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"inputs": "Hi", "parameters": {"max_new_tokens": 2, **fields}},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 2, **fields},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **fields},
    }
    with router.client() as client:
        return client.post(route, json=bodies[route])


@pytest.mark.parametrize("route", ROUTES)
def test_the_fields_reach_the_shard(router: RunningRouter, route: str) -> None:
    assert post(router, route, **FIELDS).status_code == 200
    sampling = router.shard.last_admit.sampling
    assert (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length) == (0.75, 1.5, 3)
    assert list(array("I", sampling.dry_breaker_ids)) == sorted(map(ord, '\n:"*'))
    assert post(router, route, **FIELDS, dry_sequence_breakers=["z", "ab"]).status_code == 200
    assert list(array("I", router.shard.last_admit.sampling.dry_breaker_ids)) == [ord("b"), ord("z")]


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_multiplier_dry_is_off(router: RunningRouter, route: str) -> None:
    assert post(router, route, dry_sequence_breakers=["z"]).status_code == 200
    sampling = router.shard.last_admit.sampling
    assert (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length) == (0.0, 1.75, 2)
    assert sampling.dry_breaker_ids == b""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("texts", "words"),
    [(["a"] * 17, "at most 16 strings, found 17"), (["a", ""], "1 to 40 characters"), (["a" * 41], "found one of 41")],
)
def test_breakers_that_cannot_be_are_refused(router: RunningRouter, route: str, texts: list[str], words: str) -> None:
    answer = post(router, route, dry_multiplier=1.0, dry_sequence_breakers=texts)
    assert answer.status_code in (400, 422)
    assert words in answer.text
    assert "dry_sequence_breakers" in answer.text


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("field", "value"),
    [("dry_multiplier", -0.1), ("dry_multiplier", 101), ("dry_base", 0.9), ("dry_allowed_length", 0)],
)
def test_numbers_out_of_range_are_refused(router: RunningRouter, route: str, field: str, value: float) -> None:
    answer = post(router, route, **{field: value})
    assert answer.status_code in (400, 422)
    assert field in answer.text
