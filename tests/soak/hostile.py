"""Sends hostile input to a launched server, beside a client that calls as usual, and prints a report as JSON.

`python -m tests.soak.hostile --seconds 3600 --seed 1`. The exit code is 1 when an answer was not right, when the usual
client noticed something, or when a process holds more descriptors or more memory than before.

The hostile clients rest for `CALM_S` after each `ATTACK_S`, and the usual client's calls of these rests are its usual
time, so that other work of the machine slows both alike.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.fakes.hostile_calls import HEADER_LIMIT, PAYLOAD_LIMIT
from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.tiny_models import make_tiny_llama
from tests.soak.attackers import Attackers
from tests.soak.holdings import Holdings, holdings_of

ATTACK_S = 20.0
CALM_S = 3.0
CLOSE_LIMIT_S = 60.0  # for the server to close what the attackers left, on a crowded machine
NUM_ATTACKERS = 3
REST_S = 0.1  # at most, between two attacks of one client
NUM_WARM_ROUNDS = 2  # of all hostile calls, so that all code is imported
NUM_COMPILERS = 2  # that the router starts for grammars, each when the others are busy
MAX_MEMORY_FACTOR = 1.25  # of the warm server's memory: the allocator keeps a part of large bodies
MAX_TIME_FACTOR = 2.0
SLACK_S = 0.05
CALL_LIMIT_S = 60.0
MAX_FAULTS = 50  # that the report lists
USUAL = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20, "do_sample": True, "seed": 4}}


@dataclass
class Report:
    """The figures of a run. Times are in seconds; `before` and `after` go by the name of the process."""

    seconds: float
    seed: int
    attacks: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    num_usual_calls: int = 0
    usual_s: float = 0.0
    attacked_s: float = 0.0
    before: dict[str, Holdings] = field(default_factory=dict)
    after: dict[str, Holdings] = field(default_factory=dict)
    rss_mib: dict[str, list[int]] = field(default_factory=dict)  # of each process, in each rest


class UsualClient:
    """A client whose answers must stay the same byte for byte, streamed and not. `times_s` grows with each call."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._first: dict[str, bytes] = {}
        self.is_attacked = False
        self.times_s: dict[bool, list[float]] = {False: [], True: []}  # by whether attackers were at work
        self.faults: list[str] = []

    async def run(self) -> None:
        """Call until cancelled."""
        headers = {"authorization": "Bearer k"}
        async with httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=CALL_LIMIT_S, trust_env=False
        ) as client:
            while True:
                for route in ("/generate", "/generate_stream"):
                    await self._call(client, route)
                await asyncio.sleep(0.02)

    async def _call(self, client: httpx.AsyncClient, route: str) -> None:
        was_attacked, began_s = self.is_attacked, time.monotonic()
        try:
            answer = await client.post(route, json=USUAL)
        except httpx.HTTPError as error:
            self.faults.append(f"{route}: {error!r}")
            return
        if was_attacked == self.is_attacked:
            self.times_s[was_attacked].append(time.monotonic() - began_s)
        if (answer.status_code, answer.content) != (200, self._first.setdefault(route, answer.content)):
            self.faults.append(f"{route}: {answer.status_code} {answer.text}")


def _holdings(server: LaunchedServer) -> dict[str, Holdings]:
    """Return what launcher, router and shard hold, and each compiler of grammars below the router."""
    (router,), (shard,) = server.children("textmill_router"), server.children("textmill_shard")
    compilers = router.children(recursive=True)
    found = {"launcher": psutil.Process(server.process.pid), "router": router, "shard": shard}
    found |= {f"compiler {number}": compiler for number, compiler in enumerate(compilers)}
    return {name: holdings_of(process.pid) for name, process in found.items()}


async def _settled(server: LaunchedServer, wanted: Mapping[str, Holdings]) -> dict[str, Holdings]:
    """Return what the processes hold once no process has more descriptors than wanted, or after `CLOSE_LIMIT_S`."""
    end_s = time.monotonic() + CLOSE_LIMIT_S
    while True:
        found = _holdings(server)
        if not _more_descriptors(wanted, found) or time.monotonic() > end_s:
            return found
        await asyncio.sleep(0.2)


def _more_descriptors(before: Mapping[str, Holdings], after: Mapping[str, Holdings]) -> list[str]:
    return [
        f"{name}: {count} of kind {kind}, {before[name].descriptors.get(kind, 0)} before"
        for name in before.keys() & after.keys()
        for kind, count in after[name].descriptors.items()
        if count > before[name].descriptors.get(kind, 0)
    ]


def _more_memory(before: Mapping[str, Holdings], after: Mapping[str, Holdings]) -> list[str]:
    return [
        f"{name}: {after[name].rss_bytes} bytes, {before[name].rss_bytes} before"
        for name in before.keys() & after.keys()
        if after[name].rss_bytes > MAX_MEMORY_FACTOR * before[name].rss_bytes
    ]


async def attack(server: LaunchedServer, port: int, report: Report) -> None:
    """Attack a server that serves, and write the figures into the report."""
    attackers, usual = Attackers(port, report.seed, REST_S), UsualClient(server.base_url)
    for _ in range(NUM_WARM_ROUNDS):
        await asyncio.gather(attackers.send_all_rows(), attackers.send_all_rows())
    async with asyncio.timeout(CLOSE_LIMIT_S):
        while sum(name.startswith("compiler") for name in _holdings(server)) < NUM_COMPILERS:
            await asyncio.gather(*(attackers.send_grammar() for _ in range(4 * NUM_COMPILERS)))
    calls = asyncio.create_task(usual.run())
    await asyncio.sleep(CALM_S)
    report.before = await _settled(server, _holdings(server))
    end_s = time.monotonic() + report.seconds
    while (left_s := end_s - time.monotonic()) > 0:
        usual.is_attacked = True
        await attackers.run(min(ATTACK_S, left_s), NUM_ATTACKERS)
        usual.is_attacked = False
        await asyncio.sleep(CALM_S)
        for name, holdings in _holdings(server).items():
            report.rss_mib.setdefault(name, []).append(holdings.rss_bytes >> 20)
    report.after = await _settled(server, report.before)
    calls.cancel()
    report.grown = _more_descriptors(report.before, report.after) + _more_memory(report.before, report.after)
    report.attacks, report.wrong = dict(attackers.counts), (attackers.faults + usual.faults)[:MAX_FAULTS]
    report.usual_s, report.attacked_s = (round(statistics.median(usual.times_s[kind]), 4) for kind in (False, True))
    report.num_usual_calls = sum(map(len, usual.times_s.values()))
    if report.attacked_s > MAX_TIME_FACTOR * report.usual_s + SLACK_S:
        report.wrong.append(f"the usual client took {report.attacked_s} s under attack, {report.usual_s} s at rest")
    if "Traceback" in server.log_text:
        report.wrong.append("the log has a traceback")


def hostile(seconds: float, seed: int, folder: Path) -> Report:
    """Start a server with a tiny model, attack the server, end the server, and return the report."""
    report = Report(seconds, seed)
    model = make_tiny_llama(folder / "model", max_position_embeddings=2048)
    flags = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(16 << 20)]
    flags += ["--payload-limit", str(PAYLOAD_LIMIT), "--max-header-bytes", str(HEADER_LIMIT)]
    flags += ["--header-timeout", "2", "--body-timeout", "2", "--stall-timeout", "2"]
    with launched(flags, folder, API_KEY="k") as server:
        server.wait_ready()
        asyncio.run(attack(server, int(server.base_url.rpartition(":")[2]), report))
    return report


def main() -> int:
    """Run the attack of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder for the log, which stays")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        report = hostile(arguments.seconds, arguments.seed, arguments.folder or Path(name))
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.wrong or report.grown else 0


if __name__ == "__main__":
    sys.exit(main())
