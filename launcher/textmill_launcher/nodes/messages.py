"""What launchers of several machines tell each other: one JSON object a line, over TCP.

Node 0 listens. Each other node connects, says `Hello`, and gets `Welcome` or `Refused`. `Files` follows once the node
has found the model. Node 0 says `Start` when all nodes fit; each node then starts its ranks. A node whose ranks have
ended says `Ended`, with the loss that the node has seen, if any; node 0 says `End` to the others, waits for their
`Ended`, and says `Start` again or `Stop`. Both sides say `Alive` every second.
"""

from collections.abc import Mapping

import msgspec


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all nodes must have in common, beside the files of the model."""

    versions: dict[str, str]  # of the packages on which the ranks' traffic and results depend
    num_nodes: int
    num_shard: int  # of each node
    flags: dict[str, str]  # that shape the steps of a shard


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """The first message of a node."""

    node: int
    facts: NodeFacts


class Files(msgspec.Struct, frozen=True, tag="files", forbid_unknown_fields=True):
    """The files of the model that a node has found, with their digests (`fingerprint.py`)."""

    digests: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag="failed", forbid_unknown_fields=True):
    """A node cannot start: why, and with which exit code its launcher ends."""

    message: str
    exit_code: int


class Welcome(msgspec.Struct, frozen=True, tag="welcome", forbid_unknown_fields=True):
    """Node 0 takes the node."""


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """Node 0 does not take the node. A refusal that is not final may end by itself, so the node tries again."""

    message: str
    is_final: bool


class Start(msgspec.Struct, frozen=True, tag="start", forbid_unknown_fields=True):
    """All nodes start their ranks, which meet at this port of the master's address. Starts count from 1."""

    number: int
    port: int


class End(msgspec.Struct, frozen=True, tag="end", forbid_unknown_fields=True):
    """All nodes end the ranks of this start."""

    number: int


class RankLoss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a rank. Clocks of two machines differ, so the time is a number of seconds before the message."""

    rank: int
    code: int
    phase: str
    last_lines: tuple[str, ...]
    hang: str
    seconds_ago: float


class Ended(msgspec.Struct, frozen=True, tag="ended", forbid_unknown_fields=True):
    """The ranks of a node have ended. `loss` is the first that ended by itself, None where all were told to."""

    number: int
    loss: RankLoss | None


class Stop(msgspec.Struct, frozen=True, tag="stop", forbid_unknown_fields=True):
    """The service ends: why, and with which exit code the launcher of node 0 ends."""

    message: str
    exit_code: int


class Alive(msgspec.Struct, frozen=True, tag="alive", forbid_unknown_fields=True):
    """A sign of life. A node is busy while a thread of its ranks computes or waits for a processor or a disk."""

    is_busy: bool


Message = Hello | Files | Failed | Welcome | Refused | Start | End | Ended | Stop | Alive

_decoder = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the line of a message."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of a line. Raises `msgspec.DecodeError` for anything else."""
    message: Message = _decoder.decode(line)
    return message


def differences(here: NodeFacts, there: NodeFacts) -> list[str]:
    """Return a sentence for each fact in which a node (`there`) differs from node 0 (`here`)."""
    found = [
        f"{name} is {_shown(there.versions, name)} there and {_shown(here.versions, name)} on node 0"
        for name in _differing(here.versions, there.versions)
    ]
    if there.num_nodes != here.num_nodes:
        found.append(f"--num-nodes is {there.num_nodes} there and {here.num_nodes} on node 0")
    if there.num_shard != here.num_shard:
        found.append(f"it has {there.num_shard} shards and node 0 has {here.num_shard} (--num-shard)")
    found += [
        f"{flag} is {_shown(there.flags, flag)} there and {_shown(here.flags, flag)} on node 0"
        for flag in _differing(here.flags, there.flags)
    ]
    return found


def differing_files(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return a sentence for each file of the model that a node (`there`) lacks, has beside, or has with other bytes."""
    found = []
    for name in _differing(here, there):
        if name not in there:
            found.append(f"{name} is missing there")
        elif name not in here:
            found.append(f"{name} is there and not on node 0")
        else:
            found.append(f"{name} has other content than on node 0")
    return found


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*here, *there} if here.get(name) != there.get(name))


def _shown(values: Mapping[str, str], name: str) -> str:
    return values.get(name, "not given")
