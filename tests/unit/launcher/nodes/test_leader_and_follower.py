"""Node 0 and other nodes over the loopback: who may join, how a start begins and ends, and who is lost."""

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from textmill_launcher.causes import Ending, NodeLoss
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import ChildDied, LaunchError, NodeFailed, NodeMissing, NoSuchModel, SettingsError
from textmill_launcher.nodes.follower import NodeFollower
from textmill_launcher.nodes.leader import NodeLeader
from textmill_launcher.nodes.meeting import MeetingPoint, StoppedByNode0
from textmill_launcher.nodes.messages import NodeFacts

FACTS = NodeFacts(versions={"textmill": "1"}, num_nodes=2, num_shard=1, flags={"--dtype": "float32"})
FILES = {"config.json": "a", "model.safetensors": "b"}
LIMIT_S = 20.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass(slots=True)
class World:
    """A master's address, and the nodes that a test has made, which are closed at the end."""

    master: MeetingPoint
    nodes: list[NodeLeader | NodeFollower] = dataclasses.field(default_factory=list)

    def leader(self, facts: NodeFacts = FACTS, timeout_s: float = LIMIT_S, silence_s: float = 10.0) -> NodeLeader:
        node = NodeLeader(facts=facts, master=self.master, node_timeout_s=timeout_s, silence_s=silence_s)
        self.nodes.append(node)
        return node

    def follower(
        self, node: int = 1, facts: NodeFacts = FACTS, timeout_s: float = LIMIT_S, silence_s: float = 10.0
    ) -> NodeFollower:
        follower = NodeFollower(
            node=node, facts=facts, master=self.master, node_timeout_s=timeout_s, silence_s=silence_s
        )
        self.nodes.append(follower)
        return follower


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World(MeetingPoint("127.0.0.1", free_port()))
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.close(None)


async def joined(made: World) -> tuple[NodeLeader, NodeFollower]:
    """Return two nodes that have begun their first start."""
    leader, follower = made.leader(), made.follower()
    await leader.open()
    await follower.open()
    leader.offer(FILES)
    follower.offer(FILES)
    at_leader, at_follower = await asyncio.gather(leader.begin(), follower.begin())
    assert at_leader == at_follower
    return leader, follower


def death(rank: int, code: int = -9, seconds_ago: float = 0.0) -> Ending:
    return Ending(ChildName("shard", rank), code, "serving", ("last line",), at_s=time.monotonic() - seconds_ago)


def test_nodes_meet_at_one_point_whoever_comes_first() -> None:
    async def main() -> None:
        async with world() as made:
            follower = made.follower()
            coming = asyncio.create_task(follower.open())
            await asyncio.sleep(0)
            leader = made.leader()
            await leader.open()
            await coming
            follower.offer(FILES)
            beginning = asyncio.create_task(follower.begin())
            await asyncio.sleep(0.05)
            assert not beginning.done()  # node 0 still looks for the model
            leader.offer(FILES)
            assert (await leader.begin()) == (await beginning)

    run(main)


def test_loss_of_a_rank_elsewhere_ends_the_start_and_the_next_one_begins() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            await follower.end(death(1))
            loss = await leader.wait_for_loss()
            assert loss.summary == "shard rank 1 of node 1 was killed by SIGKILL while serving"
            assert (await leader.end(loss)) == loss
            await asyncio.gather(leader.begin(), follower.begin())
            assert follower.is_at_work

    run(main)


@pytest.mark.parametrize("first", ["here", "there"])
def test_the_first_of_two_deaths_counts(first: str) -> None:
    """A rank that dies takes the others along, so both nodes tell of a death."""

    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            own = death(0, seconds_ago=3.0 if first == "here" else 1.0)
            await follower.end(death(1, seconds_ago=2.0))
            loss = await leader.end(own)
            assert isinstance(loss, Ending)
            assert loss.child.rank == (0 if first == "here" else 1)

    run(main)


def test_loss_on_node_0_ends_the_start_elsewhere() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            ending = asyncio.create_task(leader.end(death(0)))
            loss = await follower.wait_for_loss()
            assert "node 0 has ended this start" in loss.summary
            assert not ending.done()  # the ranks of node 1 still run
            await follower.end(loss)
            assert "shard rank 0 was killed" in (await ending).summary

    run(main)


def test_lost_node_is_the_cause_and_comes_back() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            await follower.close(None)
            loss = await leader.wait_for_loss()
            assert isinstance(loss, NodeLoss)
            assert loss.summary == "node 1 at 127.0.0.1 has closed the connection while starting"
            assert (await leader.end(death(0, seconds_ago=1.0))) == loss  # ranks die with the ranks of a lost node
            again = made.follower()
            await again.open()
            again.offer(FILES)
            await asyncio.gather(leader.begin(), again.begin())

    run(main)


def test_node_finds_a_new_node_0() -> None:
    async def main() -> None:
        async with world() as made:
            is_killed = asyncio.Event()

            async def dying_node_0(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readline()
                writer.write(b'{"type":"welcome"}\n{"type":"start","number":1,"port":9}\n')
                await is_killed.wait()
                writer.close()

            server = await asyncio.start_server(dying_node_0, made.master.address, made.master.port)
            follower = made.follower()
            await follower.open()
            assert (await follower.begin()).port == 9
            is_killed.set()
            assert "node 0 has closed the connection" in (await follower.wait_for_loss()).summary
            await follower.end(death(1))
            server.close()
            follower.offer(FILES)
            leader = made.leader()
            await leader.open()
            leader.offer(FILES)
            await asyncio.gather(leader.begin(), follower.begin())

    run(main)


def test_silent_node_is_lost_on_both_sides() -> None:
    class Silent(asyncio.Protocol):
        def __init__(self) -> None:
            self.text = b""

        def data_received(self, data: bytes) -> None:
            self.text += data

    async def main() -> None:
        async with world() as made:
            leader = made.leader(silence_s=0.2)
            await leader.open()
            leader.offer(FILES)
            transport, _ = await asyncio.get_running_loop().create_connection(
                Silent, made.master.address, made.master.port
            )
            transport.write(hello_of(1) + b'{"type":"files","digests":{"config.json":"a","model.safetensors":"b"}}\n')
            await leader.begin()
            assert "has said nothing for 0.2 s" in (await leader.wait_for_loss()).summary
            transport.close()

        server = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
        follower = NodeFollower(
            node=1,
            facts=FACTS,
            master=MeetingPoint("127.0.0.1", server.sockets[0].getsockname()[1]),
            node_timeout_s=0.1,
            silence_s=0.2,
        )
        with pytest.raises(NodeMissing, match=r"has said nothing for 0.2 s"):
            await follower.open()
        server.close()

    run(main)


def hello_of(node: int) -> bytes:
    return msgspec.json.encode({"type": "hello", "node": node, "facts": msgspec.to_builtins(FACTS)}) + b"\n"


def test_node_that_never_comes_is_named_within_the_limit() -> None:
    async def main() -> None:
        async with world() as made:
            leader = made.leader(timeout_s=0.2)
            await leader.open()
            leader.offer(FILES)
            with pytest.raises(
                NodeMissing, match=r"node 1 of 2 has not come to .* within 0.2 s .*--node-rank 1"
            ) as lost:
                await leader.begin()
            assert lost.value.exit_code == 19

        async with world() as made:
            with pytest.raises(NodeMissing, match=r"node 0 does not take this node .* within 0.2 s .*onnect") as lost:
                await made.follower(timeout_s=0.2).open()
            assert lost.value.exit_code == 19

    run(main)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (msgspec.structs.replace(FACTS, versions={"textmill": "2"}), "textmill is 2 there and 1 on node 0"),
        (
            msgspec.structs.replace(FACTS, flags={"--dtype": "bfloat16"}),
            "--dtype is bfloat16 there and float32 on node 0",
        ),
        (msgspec.structs.replace(FACTS, num_shard=2), "it has 2 shards and node 0 has 1"),
    ],
)
def test_node_that_differs_is_refused_by_name_and_node_0_waits_on(facts: NodeFacts, words: str) -> None:
    async def main() -> None:
        async with world() as made:
            leader = made.leader(timeout_s=0.5)
            await leader.open()
            leader.offer(FILES)
            with pytest.raises(NodeMissing, match=words):
                await made.follower(facts=facts).open()
            with pytest.raises(NodeMissing, match=words):  # the reason stands in the message of node 0 too
                await leader.begin()

    run(main)


@pytest.mark.parametrize("node", [0, 2])
def test_rank_that_is_no_other_node_is_refused(node: int) -> None:
    async def main() -> None:
        async with world() as made:
            await made.leader().open()
            with pytest.raises(NodeMissing, match="--node-rank must be from 1 to 1"):
                await made.follower(node=node).open()

    run(main)


@pytest.mark.parametrize("is_late", [False, True], ids=["node 1 first", "node 0 first"])
def test_another_checkpoint_is_refused_with_the_file(is_late: bool) -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = made.leader(timeout_s=0.5), made.follower()
            await leader.open()
            await follower.open()
            if is_late:
                leader.offer(FILES)
            follower.offer({**FILES, "model.safetensors": "other"})
            await asyncio.sleep(0.05)
            leader.offer(FILES)
            with pytest.raises(NodeMissing, match=r"another checkpoint: model.safetensors has other content"):
                await follower.begin()
            with pytest.raises(NodeMissing, match="another checkpoint"):
                await leader.begin()

    run(main)


def test_second_node_of_one_rank_waits_until_the_first_is_gone() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            second = made.follower()
            coming = asyncio.create_task(second.open())
            await asyncio.sleep(0.1)
            assert not coming.done()
            await follower.close(None)
            await coming
            assert "has closed the connection" in (await leader.wait_for_loss()).summary

    run(main)


def test_failure_of_a_node_ends_node_0_with_its_code() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = made.leader(), made.follower()
            await leader.open()
            await follower.open()
            await follower.close(NoSuchModel("there is no such folder"))
            with pytest.raises(
                NodeFailed, match=r"node 1 at 127.0.0.1 cannot start: there is no such folder"
            ) as failed:
                await leader.begin()
            assert failed.value.exit_code == NoSuchModel.exit_code
            with pytest.raises(NodeFailed):
                await leader.wait_for_failure()

    run(main)


@pytest.mark.parametrize("error", [None, ChildDied("shard rank 0 died", 137)])
def test_end_of_node_0_is_told(error: LaunchError | None) -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            await leader.close(error)
            if error is None:
                with pytest.raises(StoppedByNode0):
                    await follower.wait_for_loss()
            else:
                with pytest.raises(NodeFailed, match="node 0 has ended: shard rank 0 died") as failed:
                    await follower.wait_for_loss()
                assert failed.value.exit_code == 137

    run(main)


def test_stranger_disturbs_nobody() -> None:
    async def main() -> None:
        async with world() as made:
            leader, follower = await joined(made)
            for text in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"type":"end","number":1}\n', b"x" * (1 << 21)):
                reader, writer = await asyncio.open_connection(made.master.address, made.master.port)
                writer.write(text)
                with contextlib.suppress(ConnectionError):
                    while await reader.read(4096):
                        pass
                writer.close()
            loss = asyncio.create_task(leader.wait_for_loss())
            await asyncio.sleep(0.05)
            assert not loss.done()
            assert follower.is_at_work
            loss.cancel()

    run(main)


def test_address_of_another_machine_is_refused() -> None:
    async def main() -> None:
        leader = NodeLeader(facts=FACTS, master=MeetingPoint("192.0.2.1", 29500), node_timeout_s=1.0)
        with pytest.raises(SettingsError, match=r"--master-addr is 192.0.2.1, which is no address of this machine"):
            await leader.open()

    run(main)


def test_port_that_is_taken_has_its_code() -> None:
    async def main() -> None:
        async with world() as made:
            await made.leader().open()
            with pytest.raises(LaunchError, match="--master-port") as taken:
                await made.leader().open()
            assert taken.value.exit_code == 10

    run(main)


def test_busy_ranks_of_another_node_are_seen() -> None:
    async def main() -> None:
        async with world() as made:
            leader = made.leader()
            await leader.open()
            busy = NodeFollower(node=1, facts=FACTS, master=made.master, node_timeout_s=5.0, is_busy=lambda: True)
            made.nodes.append(busy)
            assert not leader.is_elsewhere_busy()
            await busy.open()
            while not leader.is_elsewhere_busy():  # noqa: ASYNC110 - a sign of life has no event
                await asyncio.sleep(0.01)

    run(main)
