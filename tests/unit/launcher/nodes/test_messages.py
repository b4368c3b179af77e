"""What nodes compare, and which lines are messages."""

import msgspec
import pytest
from textmill_launcher.nodes.messages import (
    Alive,
    Ended,
    Message,
    NodeFacts,
    RankLoss,
    Start,
    decode,
    differences,
    differing_files,
    encode,
)

FACTS = NodeFacts(
    versions={"textmill": "1", "torch": "2"},
    num_nodes=2,
    num_shard=4,
    flags={"--dtype": "bfloat16", "--num-slots": "8"},
)


@pytest.mark.parametrize(
    "message",
    [Start(3, 40_000), Alive(True), Ended(2, RankLoss(1, -9, "serving", ("last",), "", 0.5)), Ended(2, None)],
)
def test_message_comes_back_from_its_line(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\r\n", b"{}\n", b'{"type":"start","number":1}\n', b'{"type":"end","number":1,"x":2}\n']
)
def test_anything_else_is_no_message(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(line)


def test_each_difference_is_named_with_both_values() -> None:
    there = NodeFacts(
        versions={"textmill": "1", "torch": "3"},
        num_nodes=3,
        num_shard=2,
        flags={"--dtype": "float32", "--qkv": "given"},
    )
    assert differences(FACTS, there) == [
        "torch is 3 there and 2 on node 0",
        "--num-nodes is 3 there and 2 on node 0",
        "it has 2 shards and node 0 has 4 (--num-shard)",
        "--dtype is float32 there and bfloat16 on node 0",
        "--num-slots is not given there and 8 on node 0",
        "--qkv is given there and not given on node 0",
    ]
    assert differences(FACTS, FACTS) == []


def test_each_differing_file_is_named() -> None:
    here = {"config.json": "a", "model.safetensors": "b", "only-here.json": "c"}
    there = {"config.json": "a", "model.safetensors": "x", "only-there.json": "c"}
    assert differing_files(here, there) == [
        "model.safetensors has other content than on node 0",
        "only-here.json is missing there",
        "only-there.json is there and not on node 0",
    ]
