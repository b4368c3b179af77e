"""Runs a soak and prints its report as JSON. The exit code is 1 when an answer was wrong or a resource was lost.

`python -m tests.soak --seconds 300 --seed 1`. The clients call without a pause, and a fault comes every few seconds.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import httpx
import psutil

from tests.fakes.tiny_models import make_tiny_llama
from tests.soak.callers import Callers, make_pool
from tests.soak.faults import ROUTER, Faults
from tests.soak.mill import Mill, now_s, running_mill

CALM_LIMIT_S = 120.0  # for the last restarts to end on a crowded machine
WATCH_INTERVAL_S = 0.2
MAX_MORE_FDS = 12  # connections of clients that the router has not closed yet
MAX_MEMORY_FACTOR = 1.5


@dataclass
class Use:
    """What a process holds."""

    num_fds: int
    rss_bytes: int


@dataclass
class Report:
    """The figures of a soak. Times are in seconds."""

    seconds: float
    seed: int
    calls: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0
    shard_recoveries_s: list[float] = field(default_factory=list)
    router_recoveries_s: list[float] = field(default_factory=list)
    use_before: dict[str, Use] = field(default_factory=dict)
    use_after: dict[str, Use] = field(default_factory=dict)


class Watch:
    """Looks at the router again and again, and notes how long router and replicas were away."""

    def __init__(self, mill: Mill, report: Report) -> None:
        self._mill = mill
        self._report = report
        self._away_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        async with httpx.AsyncClient(base_url=self._mill.url, trust_env=False, timeout=5.0) as client:
            while True:
                up = await _replicas_up(client)
                self._note("router", is_up=up is not None, recoveries=self._report.router_recoveries_s)
                for replica, is_up in enumerate(up or ()):
                    self._note(f"replica {replica}", is_up=is_up, recoveries=self._report.shard_recoveries_s)
                await asyncio.sleep(WATCH_INTERVAL_S)

    def _note(self, name: str, *, is_up: bool, recoveries: list[float]) -> None:
        if not is_up:
            self._away_since.setdefault(name, now_s())
        elif name in self._away_since:
            recoveries.append(round(now_s() - self._away_since.pop(name), 1))


async def _replicas_up(client: httpx.AsyncClient) -> list[bool] | None:
    """Return which replicas serve, or None while no router answers."""
    try:
        answer = await client.get("/info")
    except httpx.TransportError:
        return None
    return [entry["phase"] == "ready" for entry in answer.json().get("replicas", ())]


async def _metrics(url: str) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        text = (await client.get("/metrics")).text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def _wait_calm(mill: Mill) -> None:
    """Wait until all replicas serve and no request runs or waits. Raises TimeoutError after `CALM_LIMIT_S`."""
    async with asyncio.timeout(CALM_LIMIT_S), httpx.AsyncClient(base_url=mill.url, trust_env=False) as client:
        while True:
            up = await _replicas_up(client)
            if up and all(up):
                numbers = await _metrics(mill.url)
                busy = ("textmill_requests_running", "textmill_requests_waiting", "textmill_requests_in_flight")
                if not any(numbers[name] for name in busy):
                    return
            await asyncio.sleep(WATCH_INTERVAL_S)


async def _find_losses(mill: Mill) -> list[str]:
    """Return a sentence for each block, slot or permit that no request holds and that is not free."""
    await asyncio.sleep(0.5)  # the last drops are acknowledged
    numbers = await _metrics(mill.url)
    free = numbers['textmill_kv_blocks{state="free"}'] + numbers['textmill_kv_blocks{state="cached"}']
    pairs = {
        "KV blocks free or cached": (free, numbers["textmill_kv_blocks_size"]),
        "slots free": (numbers["textmill_slots_free"], numbers["textmill_slots_size"]),
        "permits held": (numbers["textmill_requests_in_flight"], 0.0),
    }
    return [f"{name}: {found:g}, wanted {wanted:g}" for name, (found, wanted) in pairs.items() if found != wanted]


def _use_of(mill: Mill) -> dict[str, Use]:
    found = {"launcher": psutil.Process()}
    for name in (ROUTER, *mill.shard_names):
        process = mill.process(name)
        if process is not None:
            found[str(name)] = process
    return {name: Use(process.num_fds(), process.memory_info().rss) for name, process in found.items()}


def _find_growth(before: Mapping[str, Use], after: Mapping[str, Use]) -> list[str]:
    found = []
    for name in before.keys() & after.keys():
        if after[name].num_fds > before[name].num_fds + MAX_MORE_FDS:
            found.append(f"{name}: {after[name].num_fds} descriptors, was {before[name].num_fds}")
        if after[name].rss_bytes > MAX_MEMORY_FACTOR * before[name].rss_bytes:
            found.append(f"{name}: {after[name].rss_bytes} bytes, was {before[name].rss_bytes}")
    return found


async def soak(seconds: float, seed: int, folder: Path, log_file: Path) -> Report:
    """Run one soak and return its report."""
    report = Report(seconds, seed)
    model = make_tiny_llama(folder / "model", max_position_embeddings=8192)
    async with running_mill(model, folder, log_file) as mill:
        callers = Callers(mill, make_pool(num_tokens=120), seed)
        await callers.learn()
        warm = asyncio.create_task(callers.run(num_good=6, num_slow=1, num_leaving=1, num_bad=1))
        await asyncio.sleep(3.0)  # so that the first sample has the connections and the memory of work
        callers.end()
        await warm
        await _wait_calm(mill)
        report.use_before = _use_of(mill)
        callers = _begin_again(callers, mill, seed)
        faults, rng = Faults(mill, seed), Random(seed)
        watch = asyncio.create_task(Watch(mill, report).run())
        calls = asyncio.create_task(callers.run(num_good=10, num_slow=2, num_leaving=2, num_bad=1))
        end_s = now_s() + seconds
        while now_s() < end_s:
            await asyncio.sleep(rng.uniform(1.0, 8.0))
            if now_s() < end_s:
                await faults.make()
        callers.end()
        await calls
        await _wait_calm(mill)
        watch.cancel()
        report.lost = await _find_losses(mill)
        report.use_after = _use_of(mill)
        report.lost += _find_growth(report.use_before, report.use_after)
        report.calls, report.faults = dict(callers.tally.counts), dict(faults.counts)
        report.wrong, report.longest_pause_s = callers.tally.faults, round(callers.tally.longest_pause_s, 1)
    return report


def _begin_again(callers: Callers, mill: Mill, seed: int) -> Callers:
    again = Callers(mill, make_pool(num_tokens=120), seed + 1)
    again.undisturbed = callers.undisturbed
    return again


def main() -> int:
    """Run the soak of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="file for the log of all processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        log_file = arguments.log or folder / "log"
        report = asyncio.run(soak(arguments.seconds, arguments.seed, folder, log_file))
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.wrong or report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
