"""The queue of rows over HTTP: batches, losses, faults, callers that leave, limits and the end of a server."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from textmill_router.engine.row_engine import RowEngine

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions, plain_vector
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import make_word_tokenizer

TASK = "feature-extraction"


def vector_of(text: str) -> list[float]:
    return plain_vector(make_word_tokenizer().encode(text).ids)


@contextmanager
def serving(folder: Path, options: RowShardOptions | None = None, **settings: Any) -> Iterator[RunningRouter]:
    with task_router(folder, TASK, options, **settings) as running:
        yield running


def engine_of(router: RunningRouter) -> RowEngine:
    engine = router.service.open_row_backend().engine
    assert isinstance(engine, RowEngine)
    return engine


def wait_for_rows(router: RunningRouter, count: int) -> None:
    router.wait_until(lambda: engine_of(router).num_waiting == count, f"{count} rows wait")


class Callers:
    """Calls that run beside each other."""

    def __init__(self, router: RunningRouter) -> None:
        self._client = router.client(limits=httpx.Limits(max_connections=200))
        self._pool = ThreadPoolExecutor(64)

    def __enter__(self) -> "Callers":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        self._client.close()

    def post(self, body: Any, **headers: str) -> "Future[httpx.Response]":
        return self._pool.submit(self._client.post, "/", json=body, headers=headers)


def test_a_window_lets_the_first_row_wait_for_others(tmp_path: Path) -> None:
    with serving(tmp_path, batch_window_ms=1000) as router, Callers(router) as callers:
        answers = [callers.post({"inputs": text}) for text in ("a dog", "my cat", "the sunny day")]
        assert [answer.result().status_code for answer in answers] == [200] * 3
        assert isinstance(router.shard, FakeRowShard)
        assert [len(batch.rows) for batch in router.shard.batches] == [3]


def test_a_whole_batch_waits_for_no_window(tmp_path: Path) -> None:
    options = RowShardOptions(max_batch_tokens=8)
    with serving(tmp_path, options, batch_window_ms=1000) as router, router.client() as client:
        began_s = time.monotonic()
        for _ in range(5):
            assert client.post("/", json={"inputs": ["a dog", "my cat"]}).status_code == 200
        assert time.monotonic() - began_s < 5.0  # five windows


def test_rows_that_wait_run_together_sorted_by_length(tmp_path: Path) -> None:
    with serving(tmp_path, RowShardOptions(max_batch_tokens=60)) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.hold()
        first = callers.post({"inputs": "a dog"})
        shard.wait_for_batches(1)
        texts = ["my dog", "the sunny day and the dog", "a cat", "i live in london and my name is sarah"]
        answers = []
        for number, text in enumerate(texts, 1):
            answers.append(callers.post({"inputs": text}))
            wait_for_rows(router, number)
        shard.release()
        assert first.result().json() == vector_of("a dog")
        assert [answer.result().json() for answer in answers] == [vector_of(text) for text in texts]
        lengths = [sorted(len(row) for row in batch.rows) for batch in shard.batches]
        # 3 rows of 8 tokens are 24, and with the row of 11 tokens 44; all four fit into 60.
        assert lengths == [[4], [4, 4, 8, 11]]


def test_rows_of_a_lost_shard_are_computed_again_once(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        router.shard.lose_batches(1)
        answer = callers.post({"inputs": ["a dog", "a cat"]}).result()
        assert (answer.status_code, answer.json()) == (200, [vector_of("a dog"), vector_of("a cat")])
        assert [len(batch.rows) for batch in router.shard.batches] == [2, 1, 1]
        metrics = httpx.get(f"{router.url}/metrics", trust_env=False).text
        assert "textmill_repeated_rows 2" in metrics
        router.shard.lose_batches(2)
        answer = callers.post({"inputs": "a dog"}).result()
        assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
        assert "lost twice" in answer.json()["error"]
        assert callers.post({"inputs": "a dog"}).result().json() == vector_of("a dog")


def test_all_batches_of_a_lost_shard_are_computed_again(tmp_path: Path) -> None:
    with serving(tmp_path, RowShardOptions(max_batch_tokens=16)) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.hold()
        first = callers.post({"inputs": ["a dog"] * 4})  # 4 rows of 4 tokens are a whole batch
        shard.wait_for_batches(1)
        shard.lose_batches(1)
        second = callers.post({"inputs": ["a cat"] * 4})
        shard.wait_for_batches(2)  # lost at once, and with it the connection of the first
        shard.wait_for_batches(3)  # the first row is sent again
        shard.release()
        assert first.result().json() == [vector_of("a dog")] * 4
        assert second.result().json() == [vector_of("a cat")] * 4
        assert "textmill_repeated_rows 8" in httpx.get(f"{router.url}/metrics", trust_env=False).text


def test_a_row_that_ends_the_shard_fails_its_call_alone_at_the_second_death(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.die_of(lambda ids: len(ids) == 5)
        shard.hold()
        first = callers.post({"inputs": "a dog"})
        shard.wait_for_batches(1)
        bad = callers.post({"inputs": ["a cat", "the happy dog", "my dog"]})
        wait_for_rows(router, 3)
        good = callers.post({"inputs": ["a cat", "my cat"]})
        wait_for_rows(router, 5)
        shard.release()
        assert first.result().status_code == 200
        assert (bad.result().status_code, bad.result().json()["error_type"]) == (424, "generation")
        assert "lost twice with this row, the second time with this row alone" in bad.result().json()["error"]
        assert good.result().json() == [vector_of("a cat"), vector_of("my cat")]
        # Only two batches had the deadly row, because each death is a restart; the last row of its call ran no more.
        assert [len(batch.rows) for batch in shard.batches] == [1, 5, 1, 1, 1, 1]
        assert callers.post({"inputs": "a dog"}).result().status_code == 200


def test_a_row_that_the_shard_refuses_fails_its_call_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.refuse(lambda ids: len(ids) == 5)
        shard.hold()
        first = callers.post({"inputs": "a dog"})
        shard.wait_for_batches(1)
        bad = callers.post({"inputs": ["a cat", "the happy dog"]})
        wait_for_rows(router, 2)
        good = callers.post({"inputs": ["a cat", "my cat"]})
        wait_for_rows(router, 4)
        shard.release()
        assert first.result().status_code == 200
        assert (bad.result().status_code, bad.result().json()["error_type"]) == (424, "generation")
        assert "refused the row (INVALID_ARGUMENT: scripted refusal)" in bad.result().json()["error"]
        assert good.result().json() == [vector_of("a cat"), vector_of("my cat")]
        assert [len(batch.rows) for batch in shard.batches[:2]] == [1, 4]
        assert {len(batch.rows) for batch in shard.batches[2:]} == {1}


def test_a_row_that_is_not_finite_fails_its_call_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.poison(lambda ids: len(ids) == 5)
        shard.hold()
        first = callers.post({"inputs": "a dog"})
        shard.wait_for_batches(1)
        bad = callers.post({"inputs": ["a cat", "the happy dog"]})
        wait_for_rows(router, 2)
        good = callers.post({"inputs": ["a cat", "my cat"]})
        wait_for_rows(router, 4)
        shard.release()
        assert first.result().status_code == 200
        assert (bad.result().status_code, bad.result().json()["error_type"]) == (424, "generation")
        assert "not finite" in bad.result().json()["error"]
        assert good.result().json() == [vector_of("a cat"), vector_of("my cat")]
        assert len(shard.batches) == 2


def test_a_caller_that_leaves_takes_its_waiting_rows_back(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        router.shard.hold()
        first = callers.post({"inputs": "a dog"})
        router.shard.wait_for_batches(1)
        connection = router.send("/", {"inputs": ["a cat"] * 7})
        wait_for_rows(router, 7)
        connection.close()
        wait_for_rows(router, 0)
        router.wait_until(lambda: router.service.permits.held == 1, "the permits are back")
        router.shard.release()
        assert first.result().status_code == 200
        assert len(router.shard.batches) == 1


def test_rows_beyond_the_limit_get_429_whether_in_lists_or_alone(tmp_path: Path) -> None:
    with serving(tmp_path, max_queued_rows=8) as router, Callers(router) as callers:
        router.shard.hold()
        kept = [callers.post({"inputs": ["a dog"] * 5})]
        router.wait_until(lambda: router.service.permits.held == 5, "five rows are in work")
        kept += [callers.post({"inputs": "a dog"}) for _ in range(2)]
        router.wait_until(lambda: router.service.permits.held == 7, "seven rows are in work")
        refused = callers.post({"inputs": ["a dog"] * 2}).result()
        assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert "7 of 8 rows are in work" in refused.json()["error"]
        kept.append(callers.post({"inputs": "a dog"}))
        router.wait_until(lambda: router.service.permits.held == 8, "eight rows are in work")
        never = callers.post({"inputs": ["a dog"] * 9}).result()
        assert (never.status_code, never.json()["error_type"]) == (422, "validation")
        router.shard.release()
        assert [answer.result().status_code for answer in kept] == [200] * 4


def test_an_answer_that_is_not_there_in_time_is_504(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        router.shard.hold()
        late = callers.post({"inputs": "a dog"}, **{"x-request-timeout-ms": "50"}).result()
        assert (late.status_code, late.json()["error_type"]) == (504, "timeout")
        router.shard.release()
        router.wait_until(lambda: router.service.permits.held == 0, "the permit is back")


def test_calls_get_503_while_the_model_loads_and_may_wait(tmp_path: Path) -> None:
    with serving(tmp_path, is_loading=True) as router, Callers(router) as callers:
        early = callers.post({"inputs": "a dog"}).result()
        assert early.status_code == 503
        assert early.json()["error_type"] == "loading"
        assert early.json()["estimated_time"] > 0
        assert "retry-after" in early.headers
        assert httpx.get(f"{router.url}/health", trust_env=False).status_code == 503
        waiting = callers.post({"inputs": "a dog", "options": {"wait_for_model": True}})
        router.wait_until(lambda: router.service.permits.held == 1, "the call waits")
        router.shard.load(None)
        assert waiting.result().json() == vector_of("a dog")
        assert httpx.get(f"{router.url}/health", trust_env=False).status_code == 200


def test_a_client_that_repeats_without_a_pause_is_told_once_at_once_and_then_each_second(tmp_path: Path) -> None:
    with serving(tmp_path, is_loading=True) as router, Callers(router) as callers:
        agent = {"user-agent": "@huggingface/inference/4.13.30"}
        times = [callers.post({"inputs": "a dog"}, **agent).result() for _ in range(2)]
        assert [answer.status_code for answer in times] == [503, 503]
        assert times[0].elapsed.total_seconds() < 0.9 < times[1].elapsed.total_seconds()
        patient = callers.post({"inputs": "a dog"}).result()
        assert patient.elapsed.total_seconds() < 0.9


def test_calls_are_refused_while_the_server_leaves_and_running_ones_end(tmp_path: Path) -> None:
    with serving(tmp_path) as router, Callers(router) as callers:
        router.shard.hold()
        running = callers.post({"inputs": "a dog"})
        router.shard.wait_for_batches(1)
        router.in_loop(router.service.permits.close)
        refused = callers.post({"inputs": "a dog"}).result()
        assert (refused.status_code, refused.json()["error_type"]) == (503, "shutting_down")
        router.shard.release()
        assert running.result().json() == vector_of("a dog")


def test_equal_calls_are_answered_from_the_cache(tmp_path: Path) -> None:
    with serving(tmp_path, response_cache_bytes=100_000) as router, Callers(router) as callers:
        first = callers.post({"inputs": "a dog"}).result()
        second = callers.post({"inputs": "a dog"}).result()
        assert (second.json(), second.headers["x-cache"]) == (first.json(), "hit")
        assert second.headers["x-prompt-tokens"] == first.headers["x-prompt-tokens"]
        fresh = callers.post({"inputs": "a dog", "options": {"use_cache": False}}).result()
        assert "x-cache" not in fresh.headers
        assert len(router.shard.batches) == 2


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path, api_key=("secret",)) as router, Callers(router) as callers:
        assert callers.post({"inputs": "a dog"}).result().status_code == 401
        assert callers.post({"inputs": "a dog"}, authorization="Bearer secret").result().status_code == 200


def test_other_names_of_models_are_refused_with_strict_model(tmp_path: Path) -> None:
    with serving(tmp_path, strict_model=True) as router, router.client() as client:
        body = {"inputs": "a dog"}
        assert client.post("/models/fake/model", json=body).status_code == 200
        other = client.post("/models/other/model", json=body)
        assert (other.status_code, other.json()["error_type"]) == (404, "model_not_found")
        assert client.post("/v1/embeddings", json={"input": "a", "model": "other"}).status_code == 404


def test_a_call_of_many_rows_leaves_room_for_others(tmp_path: Path) -> None:
    with serving(tmp_path, RowShardOptions(max_batch_tokens=64)) as router, Callers(router) as callers:
        shard: FakeRowShard = router.shard
        shard.hold()
        first = callers.post({"inputs": "a dog"})
        shard.wait_for_batches(1)
        many = callers.post({"inputs": ["a dog"] * 200})
        wait_for_rows(router, 200 - 16)  # a batch of 16 rows was sent ahead
        one = callers.post({"inputs": "a cat"})
        wait_for_rows(router, 200 - 16 + 1)
        shard.release()
        assert one.result().json() == vector_of("a cat")
        assert many.result().status_code == first.result().status_code == 200
        cat = make_word_tokenizer().encode("a cat").ids
        place = next(number for number, batch in enumerate(shard.batches) if cat in batch.rows)
        assert place <= 3


def test_replicas_share_the_batches_and_one_goes_on_alone(tmp_path: Path) -> None:
    second = FakeRowShard(tmp_path / "second.sock", RowShardOptions(max_batch_tokens=16))
    with second:
        paths = (str(tmp_path / "shard.sock"), str(tmp_path / "second.sock"))
        with (
            serving(tmp_path, RowShardOptions(max_batch_tokens=16), shard_uds_path=paths) as router,
            Callers(router) as callers,
        ):
            router.wait_until(
                lambda: all(replica.is_up for replica in engine_of(router).replicas), "both replicas are up"
            )
            router.shard.hold()
            second.hold()
            answers = [callers.post({"inputs": "a dog"}) for _ in range(32)]
            router.shard.wait_for_batches(1)
            second.wait_for_batches(1)
            router.shard.release()
            second.release()
            assert {answer.result().status_code for answer in answers} == {200}
            assert router.shard.batches
            router.in_loop(lambda: engine_of(router).give_up(1, "it does not start"))
            seen = len(second.batches)
            answers = [callers.post({"inputs": "a dog"}) for _ in range(8)]
            assert {answer.result().status_code for answer in answers} == {200}
            assert len(second.batches) == seen
            router.in_loop(lambda: engine_of(router).give_up(0, "it does not start either"))
            gone = callers.post({"inputs": "a dog"}).result()
            assert gone.status_code == 503


def test_callers_beside_each_other_all_get_their_own_answer(tmp_path: Path) -> None:
    words = ["dog", "cat", "day", "name", "sarah", "london", "happy", "sunny"]
    texts = [" ".join(words[(number + step) % 8] for step in range(1 + number % 9)) for number in range(120)]
    others = threading.active_count()  # of tests before this one, in the same process
    with serving(tmp_path, RowShardOptions(max_batch_tokens=64)) as router, Callers(router) as callers:
        answers = [callers.post({"inputs": text}) for text in texts]
        assert [answer.result().json() for answer in answers] == [vector_of(text) for text in texts]
        assert threading.active_count() - others < 200
