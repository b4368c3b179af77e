"""Node 0: listens for the other nodes, compares them with itself, and begins and ends each start on all of them."""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from textmill_launcher.causes import Ending, Loss, NodeLoss
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import LaunchError, NodeFailed, NodeMissing, SettingsError
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.nodes.changes import Changes
from textmill_launcher.nodes.link import MAX_MESSAGE_BYTES, SILENCE_LIMIT_S, Link, LinkLost
from textmill_launcher.nodes.meeting import MeetingPoint
from textmill_launcher.nodes.messages import (
    End,
    Ended,
    Failed,
    Files,
    Hello,
    Message,
    NodeFacts,
    RankLoss,
    Refused,
    Start,
    Stop,
    Welcome,
    differences,
    differing_files,
)
from textmill_launcher.sockets import free_port

END_LIMIT_S = 10.0  # for a node to kill its ranks and say so
STILL_WAITING_S = 10.0
MAX_STRANGERS = 64  # connections that have not said who they are
LOOK_INTERVAL_S = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Node:
    """What node 0 knows of another node that is connected."""

    link: Link
    digests: Mapping[str, str] | None = None  # None while the node looks for the model
    fits: bool = False
    ended: int = 0  # the last start whose ranks have ended


class NodeLeader:
    """The meeting as node 0 sees it. Use: `open`, `offer`, then as `Meeting` says."""

    counts_restarts = True

    def __init__(
        self,
        *,
        facts: NodeFacts,
        master: MeetingPoint,
        node_timeout_s: float,
        is_busy: Callable[[], bool] = lambda: False,
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._facts = facts
        self._address = master.address
        self._port = master.port
        self._node_timeout_s = node_timeout_s
        self._is_busy = is_busy
        self._silence_s = silence_s
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._nodes: dict[int, _Node] = {}
        self._digests: Mapping[str, str] | None = None
        self._changes = Changes()
        self._failure: NodeFailed | None = None
        self._last_refusal = ""
        self._number = 0  # of the start under way, or of the last one
        self._losses: list[Loss] = []  # of that start
        self._phase = "starting"

    async def open(self) -> None:
        """Listen at the master's address. Raises `LaunchError` where that cannot be.

        A name that has no address yet is asked for again, because a cluster may make names later than pods.
        """
        deadline_s = time.monotonic() + self._node_timeout_s
        while True:
            try:
                self._address = await resolve(self._address, self._port)
                self._server = await asyncio.start_server(
                    self._talk, self._address, self._port, limit=MAX_MESSAGE_BYTES
                )
            except socket.gaierror as error:
                if time.monotonic() > deadline_s:
                    raise SettingsError(f"--master-addr {self._address} has no address: {error.strerror}") from None
                await asyncio.sleep(LOOK_INTERVAL_S)
            except OSError as error:
                raise _cannot_listen(error, self._address, self._port) from None
            else:
                log.info("node 0 of %d: waits for the others at %s:%d", self._num_nodes, self._address, self._port)
                return

    @property
    def address(self) -> str:
        """The address of this node at which the others meet it."""
        return self._address

    @property
    def _num_nodes(self) -> int:
        return self._facts.num_nodes

    def offer(self, digests: Mapping[str, str]) -> None:
        """Note the files of the model on this node, which those of the others must equal."""
        self._digests = digests
        for number, node in list(self._nodes.items()):
            self._compare_files(number, node)

    def fail(self, error: LaunchError) -> None:
        """Do nothing, because `close` tells the other nodes."""

    async def wait_for_failure(self) -> None:
        """Raise the error of a node that cannot start, once there is one."""
        while self._failure is None:
            await self._changes.wait()
        raise self._failure

    async def begin(self) -> MeetingPoint:
        """Wait until all nodes are there, fit and have ended the start before, and let them start their ranks."""
        absent_since_s: float | None = None
        logged_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if self._failure is not None:
                raise self._failure
            absent = [number for number in range(1, self._num_nodes) if number not in self._nodes]
            loading = [number for number, node in self._nodes.items() if not node.fits]
            if not absent and not loading:
                break
            absent_since_s = None if not absent else now_s if absent_since_s is None else absent_since_s
            if absent_since_s is not None and now_s - absent_since_s > self._node_timeout_s:
                raise self._missing(absent[0])
            if now_s - logged_s > STILL_WAITING_S:
                logged_s = now_s
                log.info("waiting for %s", _waited_for(absent, loading))
            await self._changes.wait(LOOK_INTERVAL_S)
        self._number += 1
        self._losses = []
        self._phase = "starting"
        port = free_port(self._address)
        for node in self._nodes.values():
            node.link.send(Start(self._number, port))
        log.info("all %d nodes are there: start %d", self._num_nodes, self._number)
        return MeetingPoint(self._address, port)

    def become_ready(self) -> None:
        """Note that the ranks of this start serve."""
        self._phase = "serving"

    async def wait_for_loss(self) -> Loss:
        """Return the first loss that another node tells, or the loss of a node."""
        while not self._losses:
            await self._changes.wait()
        return self._losses[0]

    async def end(self, loss: Loss) -> Loss:
        """Let all nodes end their ranks. A node that does not within `END_LIMIT_S` is lost.

        The loss of a node goes before that of a rank, because ranks follow the ranks of a lost node. Of the losses of
        ranks the first in time counts.
        """
        for node in self._nodes.values():
            if node.ended < self._number:
                node.link.send(End(self._number))
        deadline_s = time.monotonic() + END_LIMIT_S
        while late := [number for number, node in self._nodes.items() if node.ended < self._number]:
            if time.monotonic() > deadline_s:
                for number in late:
                    self._lose(number, f"has not ended its ranks within {END_LIMIT_S:g} s")
            else:
                await self._changes.wait(LOOK_INTERVAL_S)
        found = [loss, *self._losses]
        nodes = [entry for entry in found if isinstance(entry, NodeLoss)]
        return min(nodes or found, key=lambda entry: entry.at_s)

    async def close(self, error: LaunchError | None) -> None:
        """Tell all nodes that the service ends, and listen no more. A second call does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        message = Stop("it was stopped", 0) if error is None else Stop(str(error), error.exit_code)
        for node in self._nodes.values():
            node.link.send(message)
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def is_elsewhere_busy(self) -> bool:
        """Whether a rank of another node computes, by the last sign of life of that node."""
        return any(node.link.is_other_busy for node in self._nodes.values())

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk with one connection until its end."""
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this in a task"
        link = Link(reader, writer, self._is_busy, self._silence_s)
        number: int | None = None
        self._talks.add(task)
        try:
            if len(self._talks) > MAX_STRANGERS + self._num_nodes:
                return
            hello = await link.receive()
            number = self._admit(link, hello)
            while number is not None:
                self._take(number, link, await link.receive())
        except LinkLost as lost:
            if number is not None:
                self._lose(number, str(lost), link)
            else:
                log.warning("%s, which is no node of this model, %s", link.peer, lost)
        except asyncio.CancelledError:
            pass  # `close` has cancelled this task, which must still close its connection
        finally:
            await link.close()
            self._talks.discard(task)

    def _admit(self, link: Link, hello: Message) -> int | None:
        """Return the number of a node that may stay, or refuse it and return None."""
        if not isinstance(hello, Hello):
            log.warning("%s did not say first which node it is", link.peer)
            return None
        name = f"node {hello.node} at {link.peer}"
        if not 0 < hello.node < self._num_nodes:
            self._refuse(link, name, f"--node-rank must be from 1 to {self._num_nodes - 1}")
            return None
        if problems := differences(self._facts, hello.facts):
            self._refuse(link, name, "; ".join(problems))
            return None
        if hello.node in self._nodes:
            self._refuse(link, name, f"node {hello.node} is there already", is_final=False)
            return None
        self._nodes[hello.node] = _Node(link, ended=self._number)
        link.send(Welcome())
        log.info("%s has come", name)
        self._changes.tell()
        return hello.node

    def _refuse(self, link: Link, name: str, why: str, *, is_final: bool = True) -> None:
        log.warning("%s is refused: %s", name, why)
        self._last_refusal = f"{name} was refused: {why}"
        link.send(Refused(why, is_final))

    def _take(self, number: int, link: Link, message: Message) -> None:
        node = self._nodes.get(number)
        if node is None or node.link is not link:
            raise LinkLost("was refused")
        match message:
            case Files(digests):
                node.digests = digests
                self._compare_files(number, node)
            case Failed(text, exit_code):
                self._failure = NodeFailed(f"node {number} at {node.link.peer} cannot start: {text}", exit_code)
            case Ended(start, loss):
                node.ended = max(node.ended, start)
                if loss is not None and start == self._number:
                    self._losses.append(_ending_of(number, loss))
            case _:
                raise LinkLost("has sent a message that only node 0 sends")
        self._changes.tell()

    def _compare_files(self, number: int, node: _Node) -> None:
        if self._digests is None or node.digests is None:
            return
        problems = differing_files(self._digests, node.digests)
        node.fits = not problems
        if problems:
            del self._nodes[number]
            self._refuse(node.link, f"node {number} at {node.link.peer}", "another checkpoint: " + "; ".join(problems))
        self._changes.tell()

    def _lose(self, number: int, how: str, link: Link | None = None) -> None:
        node = self._nodes.get(number)
        if node is None or (link is not None and node.link is not link):
            return  # refused, or lost before
        del self._nodes[number]
        log.warning("node %d at %s %s", number, node.link.peer, how)
        self._losses.append(NodeLoss(number, f"at {node.link.peer} {how}", self._phase, time.monotonic()))
        self._changes.tell()

    def _missing(self, number: int) -> NodeMissing:
        refusal = f"; {self._last_refusal}" if self._last_refusal else ""
        return NodeMissing(
            f"node {number} of {self._num_nodes} has not come to {self._address}:{self._port} within "
            f"{self._node_timeout_s:g} s (--node-timeout){refusal}; what to try: start the launcher there with "
            f"--num-nodes {self._num_nodes} --node-rank {number} and this --master-addr and --master-port, and let it "
            "reach this port"
        )


async def resolve(host: str, port: int) -> str:
    """Return an address of a host. Raises socket.gaierror."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(infos[0][4][0])


def _cannot_listen(error: OSError, address: str, port: int) -> LaunchError:
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError(
            f"--master-addr is {address}, which is no address of this machine: node 0 runs where that address is "
            "(--node-rank, --master-addr)"
        )
    taken = LaunchError(f"node 0 cannot listen at {address}:{port}: {error.strerror}; another --master-port?")
    taken.exit_code = ExitCode.PORT_TAKEN
    return taken


def _ending_of(node: int, loss: RankLoss) -> Ending:
    name = ChildName("shard", loss.rank, node=node)
    at_s = time.monotonic() - loss.seconds_ago
    return Ending(name, loss.code, loss.phase, loss.last_lines, loss.hang, at_s)


def _waited_for(absent: list[int], loading: list[int]) -> str:
    parts = [f"node {number} to come" for number in absent] + [f"node {number} to find the model" for number in loading]
    return ", ".join(parts)
