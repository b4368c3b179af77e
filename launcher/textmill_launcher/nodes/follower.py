"""A node other than node 0: finds node 0, and starts and ends its ranks when node 0 says so."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from textmill_launcher.causes import Ending, Loss, NodeLoss
from textmill_launcher.errors import LaunchError, NodeFailed, NodeMissing
from textmill_launcher.nodes.changes import Changes
from textmill_launcher.nodes.link import MAX_MESSAGE_BYTES, SILENCE_LIMIT_S, Link, LinkLost
from textmill_launcher.nodes.meeting import MeetingPoint, StoppedByNode0
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
)

RETRY_INTERVAL_S = 0.5
CONNECT_LIMIT_S = 5.0  # of one try

log = logging.getLogger(__name__)


class _TryAgain(Exception):
    """Node 0 did not take this node, and may do so later. `str()` says why."""


class NodeFollower:
    """The meeting as a node other than node 0 sees it. Use: `open`, `offer`, then as `Meeting` says."""

    counts_restarts = False

    def __init__(
        self,
        *,
        node: int,
        facts: NodeFacts,
        master: MeetingPoint,
        node_timeout_s: float,
        is_busy: Callable[[], bool] = lambda: False,
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._node = node
        self._facts = facts
        self._address = master.address
        self._port = master.port
        self._node_timeout_s = node_timeout_s
        self._is_busy = is_busy
        self._silence_s = silence_s
        self._digests: Mapping[str, str] | None = None
        self._link: Link | None = None  # None while there is no connection
        self._reading: asyncio.Task[None] | None = None
        self._changes = Changes()
        self._end_of_service: LaunchError | StoppedByNode0 | None = None
        self._start: Start | None = None  # the last that node 0 has said
        self._number = 0  # of the start under way, or of the last one
        self._end_wanted = 0  # the last start that node 0 has ended
        self._lost = ""  # how the connection was lost
        self._phase = "starting"

    async def open(self) -> None:
        """Connect to node 0. Raises `NodeMissing` when node 0 is not there within the limit, or refuses this node."""
        await self._connect()

    @property
    def address(self) -> str:
        """The address of this node from which node 0 was reached."""
        assert self._link is not None, "`open` comes first"
        return self._link.own_address

    @property
    def is_at_work(self) -> bool:
        """Whether node 0 is there and has begun a start that this node has not ended."""
        return self._link is not None and 0 < self._number > self._end_wanted

    def offer(self, digests: Mapping[str, str]) -> None:
        """Tell node 0 the files of the model on this node."""
        self._digests = digests
        self._send(Files(dict(digests)))

    def fail(self, error: LaunchError) -> None:
        """Tell node 0 that this node cannot start."""
        self._send(Failed(str(error), error.exit_code))

    async def wait_for_failure(self) -> None:
        """Raise what ends the service, once node 0 says so."""
        while self._end_of_service is None:
            await self._changes.wait()
        raise self._end_of_service

    async def begin(self) -> MeetingPoint:
        """Wait until node 0 says `Start`, and return where the ranks meet. Connects again where needed."""
        while True:
            if self._end_of_service is not None:
                raise self._end_of_service
            if self._link is None:
                await self._connect()
            elif self._start is not None and self._start.number > self._number:
                self._number = self._start.number
                if self._end_wanted < self._number:
                    self._phase = "starting"
                    log.info("node 0 begins start %d", self._number)
                    return MeetingPoint(self._link.peer, self._start.port)
                self._send(Ended(self._number, None))
            else:
                await self._changes.wait()

    def become_ready(self) -> None:
        """Note that the ranks of this start serve."""
        self._phase = "serving"

    async def wait_for_loss(self) -> Loss:
        """Return when node 0 ends this start or is lost. Raises what ends the service."""
        while True:
            if self._end_of_service is not None:
                raise self._end_of_service
            if self._link is None:
                return NodeLoss(0, self._lost, self._phase, time.monotonic())
            if self._end_wanted >= self._number:
                return NodeLoss(0, "has ended this start", self._phase, time.monotonic())
            await self._changes.wait()

    async def end(self, loss: Loss) -> Loss:
        """Tell node 0 that the ranks have ended, with the loss if it is one of this node."""
        self._send(Ended(self._number, _report(loss) if isinstance(loss, Ending) else None))
        return loss

    async def close(self, error: LaunchError | None) -> None:
        """Leave node 0. A second call does nothing."""
        if error is not None and self._end_of_service is None:
            self.fail(error)
        link, self._link = self._link, None
        if self._reading is not None:
            if link is not None:  # else the task closes a connection that was lost
                self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if link is not None:
            await link.close()

    def is_elsewhere_busy(self) -> bool:
        """Return False, because only node 0 judges rank 0."""
        return False

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _connect(self) -> None:
        began_s = time.monotonic()
        log.info("node %d of %d: looks for node 0", self._node, self._facts.num_nodes)
        while True:
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    link = await self._try_to_connect()
            except (OSError, TimeoutError, LinkLost, _TryAgain) as error:
                if time.monotonic() - began_s > self._node_timeout_s:
                    raise NodeMissing(
                        f"node 0 does not take this node at {self._address}:{self._port} within "
                        f"{self._node_timeout_s:g} s (--node-timeout): {str(error) or 'it does not answer'}; what to "
                        "try: start node 0 with this --master-addr and --master-port, and let this machine reach it"
                    ) from None
                await asyncio.sleep(RETRY_INTERVAL_S)
            else:
                break
        log.info("node 0 at %s is there", link.peer)
        self._start, self._number, self._end_wanted, self._lost = None, 0, 0, ""
        self._link = link
        if self._digests is not None:
            self.offer(self._digests)
        self._reading = asyncio.create_task(self._read(link))

    async def _try_to_connect(self) -> Link:
        reader, writer = await asyncio.open_connection(self._address, self._port, limit=MAX_MESSAGE_BYTES)
        link = Link(reader, writer, self._is_busy, self._silence_s)
        try:
            link.send(Hello(self._node, self._facts))
            match await link.receive():
                case Welcome():
                    return link
                case Refused(message, is_final):
                    raise self._refusal(message) if is_final else _TryAgain(message)
                case _:
                    raise LinkLost("has not answered as node 0 does")
        except BaseException:
            await link.close()
            raise

    async def _read(self, link: Link) -> None:
        """Take the messages of node 0 until the connection ends."""
        try:
            while True:
                self._take(await link.receive())
                self._changes.tell()
        except LinkLost as lost:
            log.warning("node 0 at %s %s", link.peer, lost)
            self._lost = str(lost)
        self._link = None
        self._changes.tell()
        await link.close()

    def _take(self, message: Message) -> None:
        match message:
            case Start():
                self._start = message
            case End(number):
                self._end_wanted = max(self._end_wanted, number)
            case Stop(text, 0):
                log.info("node 0 has ended the service: %s", text)
                self._end_of_service = StoppedByNode0(text)
            case Stop(text, exit_code):
                self._end_of_service = NodeFailed(f"node 0 has ended: {text}", exit_code)
            case Refused(text, _):
                self._end_of_service = self._refusal(text)
            case _:
                raise LinkLost("has sent a message that node 0 does not send")

    def _refusal(self, why: str) -> NodeMissing:
        return NodeMissing(f"node 0 at {self._address}:{self._port} refuses node {self._node}: {why}")


def _report(loss: Ending) -> RankLoss:
    seconds_ago = max(0.0, time.monotonic() - loss.at_s)
    rank = loss.child.rank
    assert rank is not None, "only shards belong to a start"
    return RankLoss(rank, loss.code, loss.phase, loss.last_lines, loss.hang, seconds_ago)
