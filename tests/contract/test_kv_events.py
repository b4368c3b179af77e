"""Events of the KV cache, as a real subscriber of ZeroMQ reads them, and the messages that it asks for again."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from textmill_router.kv_events.start import CannotListen
from textmill_router.outlets import open_outlets
from textmill_router.settings import Settings

from tests.fakes.byte_tokenizer import BEGIN_ID
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

LIMIT_S = 10.0
BLOCK = 16
TOPIC = b"kv@pod-1@fake/model"
OPTIONS = FakeShardOptions(num_slots=8, num_blocks=512, block_size=BLOCK)
FLAGS = {"kv_events_port": 0, "kv_events_topic": TOPIC.decode()}


class Subscriber:
    """A subscriber of the events, and the asker of a replay."""

    def __init__(self, router: RunningRouter) -> None:
        publisher = router.outlets.events
        assert publisher is not None
        self._context = zmq.Context()
        self._news = self._context.socket(zmq.SUB)
        self._news.connect(f"tcp://127.0.0.1:{publisher.port}")
        self._news.subscribe(b"kv@")
        self._replay = self._context.socket(zmq.DEALER)  # a REQ socket reads one answer to a question
        self._replay.connect(f"tcp://127.0.0.1:{publisher.replay_port}")
        for one in (self._news, self._replay):
            one.rcvtimeo = int(LIMIT_S * 1000)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def next(self) -> tuple[int, list[Any]]:
        """Return the number of the next message and its payload: time, events, replica."""
        topic, number, payload = self._news.recv_multipart()
        assert topic == TOPIC
        return int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)

    def events_until(self, kind: str) -> list[Any]:
        """Return all events up to the first of a kind."""
        found: list[Any] = []
        while not any(event["type"] == kind for event in found):
            found += self.next()[1][1]
        return found

    def replay(self, first: int) -> list[tuple[int, list[Any]]]:
        """Return the messages from a number on, as the replay socket gives them."""
        self._replay.send_multipart([b"", first.to_bytes(8, "big")])
        found = []
        while True:
            separator, number, payload = self._replay.recv_multipart()
            assert separator == b""
            if number == b"\xff" * 8:
                assert payload == b""
                return found
            found.append((int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)))


@contextmanager
def subscriber_of(router: RunningRouter) -> Iterator[Subscriber]:
    """A subscriber that is known to hear: ZeroMQ tells nobody when a subscription has arrived."""
    subscriber = Subscriber(router)
    try:
        subscriber._news.rcvtimeo = 50
        end_s = time.monotonic() + LIMIT_S
        with router.client() as client:
            while time.monotonic() < end_s:
                # Each try stores a block of its own.
                generate(client, f"{time.monotonic()} {'hello' * 4}")
                try:
                    subscriber.next()
                    break
                except zmq.Again:
                    continue
        subscriber._news.rcvtimeo = int(LIMIT_S * 1000)
        yield subscriber
    finally:
        subscriber.close()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RunningRouter]:
    with RunningRouter(tmp_path, OPTIONS, **FLAGS) as running:
        yield running


def generate(client: Any, text: str, num_tokens: int = 1) -> Any:
    answer = client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": num_tokens}})
    assert answer.status_code == 200
    return answer.json()


def drain(subscriber: Subscriber, text: str, client: Any) -> list[Any]:
    """Generate, and return the events of the blocks that begin with this text."""
    generate(client, text)
    ids = [BEGIN_ID, *text.encode()]
    while True:
        stored = [event for event in subscriber.next()[1][1] if event["type"] == "BlockStored"]
        if stored and stored[0]["token_ids"][:BLOCK] == ids[:BLOCK]:
            return stored


def test_full_blocks_are_told_with_their_tokens_and_parents(router: RunningRouter) -> None:
    text = "a" * 20 + "b" * 30  # 51 tokens with BEGIN: three full blocks
    ids = [BEGIN_ID, *text.encode()]
    with subscriber_of(router) as subscriber, router.client() as client:
        before_s = time.time()
        [event] = drain(subscriber, text, client)
        assert event["token_ids"] == ids[: 3 * BLOCK]
        assert (event["block_size"], event["medium"], event["parent_block_hash"]) == (BLOCK, "CPU", None)
        assert (event["lora_id"], event["lora_name"], event["extra_keys"]) == (None, None, None)
        assert [len(digest) for digest in event["block_hashes"]] == [16] * 3
        # Two blocks are known; the third is another, and its parent is the second.
        other = text[:40] + "c" * 10
        generate(client, other)
        number, (time_s, [further], replica) = subscriber.next()
        assert further["token_ids"] == [BEGIN_ID, *other.encode()][2 * BLOCK : 3 * BLOCK]
        assert further["parent_block_hash"] == event["block_hashes"][1]
        assert further["block_hashes"][0] not in event["block_hashes"]
        assert before_s <= time_s <= time.time()
        assert replica is None
        # A text that is wholly known stores nothing; the next message is that of the next new text.
        generate(client, other)
        generate(client, "z" * 40)
        assert subscriber.next()[0] == number + 1


def test_tokens_of_the_output_are_told_too(router: RunningRouter) -> None:
    with subscriber_of(router) as subscriber, router.client() as client:
        drain(subscriber, "w" * 16, client)
        answer = generate(client, "w" * 16, num_tokens=32)
        ids = [BEGIN_ID, *b"w" * 16, *answer["generated_text"].encode()]
        told: list[int] = []
        while len(told) < 2 * BLOCK:
            for event in subscriber.next()[1][1]:
                told += event["token_ids"]
    assert told == ids[BLOCK : 3 * BLOCK]


def test_evicted_blocks_are_told(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=2, num_blocks=16, block_size=BLOCK)
    with RunningRouter(tmp_path, options, **FLAGS) as router, subscriber_of(router) as subscriber:
        with router.client() as client:
            [first] = drain(subscriber, "f" * 33, client)
            for letter in "ghijklmno":
                generate(client, letter * 40)
        found = subscriber.events_until("BlockRemoved")
        while not set(first["block_hashes"]) <= gone(found):
            found += subscriber.next()[1][1]
    removed = [digest for event in found if event["type"] == "BlockRemoved" for digest in event["block_hashes"]]
    parent, child = first["block_hashes"]
    assert removed.index(child) < removed.index(parent)  # the pool evicts children first
    assert {event["medium"] for event in found if event["type"] == "BlockRemoved"} == {"CPU"}


def gone(events: list[Any]) -> set[bytes]:
    return {digest for event in events if event["type"] == "BlockRemoved" for digest in event["block_hashes"]}


def test_missed_messages_are_given_again(router: RunningRouter) -> None:
    with router.client() as client:
        for letter in "abcde":
            generate(client, letter * 40)
    with subscriber_of(router) as subscriber:
        whole = subscriber.replay(0)
        numbers = [number for number, _ in whole]
        assert numbers == list(range(len(whole)))
        assert [event["type"] for event in whole[0][1][1]] == ["AllBlocksCleared"]  # the first epoch has begun
        told = [event["token_ids"][1] for _, (_, events, _) in whole[1:6] for event in events]
        assert told == list(b"abcde")
        assert subscriber.replay(3) == whole[3:]
        assert subscriber.replay(len(whole) + 5) == []


def test_new_epoch_clears_all_blocks(router: RunningRouter) -> None:
    with subscriber_of(router) as subscriber, router.client() as client:
        [stored] = drain(subscriber, "a" * 40, client)
        router.shard.cut()
        assert subscriber.events_until("AllBlocksCleared")[-1] == {"type": "AllBlocksCleared"}
        router.wait_until_healthy()
        [again] = drain(subscriber, "a" * 40, client)  # nothing of the epoch before is known
        assert again["block_hashes"] == stored["block_hashes"]


@pytest.mark.parametrize("is_shared", [False, True])
def test_blocks_of_callers_that_are_kept_apart_are_told_to_nobody(is_shared: bool, tmp_path: Path) -> None:
    flags = {**FLAGS, "api_key": ("one", "two"), "shared_prefix_cache": is_shared}
    with RunningRouter(tmp_path, OPTIONS, **flags) as router:
        for key in ("one", "two"):
            with router.client(headers={"authorization": f"Bearer {key}"}) as client:
                generate(client, key * 20)
        subscriber = Subscriber(router)
        try:
            router.wait_until_free()
            events = [event for _, (_, of_one, _) in subscriber.replay(0) for event in of_one]
        finally:
            subscriber.close()
    stored = [event for event in events if event["type"] == "BlockStored"]
    assert len(stored) == (2 if is_shared else 0)
    assert {event["type"] for event in events} - {"BlockStored"} == {"AllBlocksCleared"}


def test_questions_that_are_none_are_left_alone(router: RunningRouter) -> None:
    with subscriber_of(router) as subscriber:
        for frames in ([b""], [b"", b"\x01"], [b"", b"12345678", b"more"]):
            subscriber._replay.send_multipart(frames)
        assert subscriber.replay(0)


def test_taken_port_ends_the_start_with_the_flags(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(
            model_dir="m", model_id="m", shard_uds_path=("s",), hostname="127.0.0.1", kv_events_port=port
        )
        with pytest.raises(CannotListen, match=rf"tcp://127.0.0.1:{port}: .*in use.*--kv-events-port"):
            open_outlets(settings)


def test_topic_none_is_an_empty_frame(tmp_path: Path) -> None:
    """As vllm-router 0.1.17 wants: it passes over messages with any other topic."""
    with (
        RunningRouter(tmp_path, OPTIONS, kv_events_port=0, kv_events_topic="none") as router,
        router.client() as client,
    ):
        publisher = router.outlets.events
        assert publisher is not None
        with zmq.Context() as context, context.socket(zmq.SUB) as news:
            news.connect(f"tcp://127.0.0.1:{publisher.port}")
            news.subscribe(b"")
            news.rcvtimeo = 50
            end_s, frames = time.monotonic() + LIMIT_S, []
            while not frames and time.monotonic() < end_s:
                generate(client, f"{time.monotonic()} {'hello' * 4}")
                with suppress(zmq.Again):
                    frames = news.recv_multipart()
    assert len(frames) == 3
    assert frames[0] == b""
