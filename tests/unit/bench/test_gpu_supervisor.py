"""A part of the benchmark of a GPU that raises, crashes, hangs or breaks the device loses itself and nothing else."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from bench.gpu.plan import Lane, Part, Plan, plan_run
from bench.gpu.report import Report
from bench.gpu.supervisor import Refused, Run, Supervisor
from tests.fakes import gpu_parts

REPOSITORY = Path(__file__).parents[3]
LIMIT_S = 60.0  # of a part that does not hang
SHORT_S = 1.0


def part(name: str) -> Part:
    return Part(name, SHORT_S if name in ("hangs", "leaves") else LIMIT_S, SHORT_S if name == "an item hangs" else None)


class Bed:
    """A supervisor over the fake parts."""

    def __init__(self, folder: Path, *, budget_s: float = 120.0, least_left_s: float = 15.0) -> None:
        self.report = Report(folder / "report.json")
        self.log = folder / "report.log"
        self.mark = folder / "mark"
        run = Run(
            gpu_parts.__name__,
            is_dry=False,
            ends_at=time.monotonic() + budget_s,
            trace_file=self.mark,
            least_left_s=least_left_s,
        )
        self.said: list[str] = []
        self.supervisor = Supervisor(run, self.report, self.log, self.said.append)

    def run(self, *lanes: tuple[str, ...]) -> None:
        stage = tuple(Lane(tuple(part(name) for name in names)) for names in lanes)
        self.supervisor.run(Plan((stage,), width=2))

    def names(self, of: str) -> list[str]:
        return [row.name for row in self.report.parts.get(of, [])]

    def reason(self, of: str) -> str:
        [reason] = self.report.skipped[of]
        return reason


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_parts_of_a_lane_share_a_process_and_lanes_do_not(bed: Bed) -> None:
    bed.run(("good", "measures", "asks"), ("good",))
    one, other = (row.numbers["pid"] for row in bed.report.parts["good"])
    assert one != other
    assert bed.report.parts["asks"][0].numbers == {"copy": 5.0}
    assert bed.report.skipped == {}
    assert set(bed.report.seconds) == {"good", "measures", "asks"}
    assert list(json.loads(bed.report.file.read_text())["parts"]["measures"][0]["numbers"]) == ["GB/s"]


def test_an_exception_ends_its_part_and_the_next_one_runs_in_the_same_process(bed: Bed) -> None:
    bed.run(("measures", "raises", "asks"))
    assert bed.names("raises") == ["before"]
    assert bed.reason("raises") == "failed: ZeroDivisionError: by nothing"
    assert bed.mark.read_text() == "forgotten"  # models
    assert [line.rpartition(" after ")[0] for line in bed.said] == [
        "measures: done",
        "raises: failed: ZeroDivisionError: by nothing",
        "asks: done",
    ]
    assert bed.names("asks") == ["rates"]
    assert "Traceback" in bed.log.read_text()


def test_a_part_that_cannot_run_on_this_machine_says_why_and_the_next_one_runs(bed: Bed) -> None:
    bed.run(("cannot run", "good"))
    assert bed.reason("cannot run") == "not run, because a compiler is missing"
    assert bed.names("good") == ["row"]
    assert not bed.mark.exists()  # models are kept


def test_a_process_finds_this_checkout_without_an_installation_and_asks_no_hub(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "of-the-user")
    bed.run(("tells its environment",))
    [row] = bed.report.parts["tells its environment"]
    rooms = [str(REPOSITORY / room) for room in ("proto", "router", "shard", "launcher")]
    assert row.numbers == {
        "PYTHONPATH": ":".join([str(REPOSITORY), *rooms, "of-the-user"]),
        "HF_HUB_OFFLINE": "1",
        "USE_HUB_KERNELS": "NO",
    }


def test_a_broken_device_is_left_with_its_process_and_the_rates_are_kept(bed: Bed) -> None:
    bed.run(("measures", "breaks the device", "asks"))
    reason = bed.reason("breaks the device")
    assert reason.startswith("RuntimeError: no result; then the device answered: RuntimeError: CUDA error: an illegal")
    assert bed.report.parts["asks"][0].numbers == {"copy": 5.0}


def test_a_part_that_hangs_is_ended_and_the_log_says_where(bed: Bed) -> None:
    bed.run(("hangs", "good"))
    assert bed.names("hangs") == ["before"]
    assert "took too long: hangs has run for" in bed.reason("hangs")
    assert bed.names("good") == ["row"]
    log = bed.log.read_text()
    assert "a library prints" in log
    assert "in _hangs" in log


def test_an_item_that_crashes_or_hangs_is_a_fault_and_the_others_are_done(bed: Bed) -> None:
    bed.run(("an item crashes", "good"), ("an item hangs", "good"))
    assert bed.names("an item crashes") == bed.names("an item hangs") == list(gpu_parts.ITEMS)
    assert sorted(bed.report.faults) == ["an item crashes: b", "an item hangs: b"]
    [crashed] = [row for row in bed.report.parts["an item crashes"] if row.is_fine is False]
    assert "the process ended with signal SIGSEGV" in str(crashed.numbers["failed"])
    assert bed.report.skipped == {}
    assert bed.names("good") == ["row", "row"]


def test_a_part_whose_items_all_crash_is_given_up(bed: Bed) -> None:
    bed.run(("all items crash", "good"))
    assert bed.names("all items crash") == ["a", "b", "c"]
    assert "the process ended with code 3" in bed.reason("all items crash")
    assert bed.names("good") == ["row"]


def test_lanes_divide_the_items_of_a_part(bed: Bed) -> None:
    lanes = tuple(Lane((part("items"),), number, 2) for number in range(2))
    bed.supervisor.run(Plan((lanes,), width=2))
    assert sorted(bed.names("items")) == list(gpu_parts.ITEMS)


def test_a_process_that_dies_at_its_start_costs_the_first_part_alone(bed: Bed) -> None:
    bed.run(("dies at the start", "good"))
    assert "signal SIGKILL" in bed.reason("dies at the start")
    assert bed.names("good") == ["row"]


def test_a_machine_that_cannot_run_is_refused(bed: Bed) -> None:
    with pytest.raises(Refused, match="there is no GPU: take --dry"):
        bed.run(("refused",))


def test_the_end_of_the_budget_ends_the_part_under_way_and_names_those_left_out(tmp_path: Path) -> None:
    bed = Bed(tmp_path, budget_s=4.0, least_left_s=0.5)
    began_s = time.monotonic()
    lane = Lane((Part("hangs", LIMIT_S), part("good")))
    bed.supervisor.run(Plan(((lane,),), width=1))
    assert time.monotonic() - began_s < 20  # the process has three seconds to end
    assert bed.names("hangs") == ["before"]
    assert bed.reason("hangs").startswith("cut off by the budget")
    assert bed.reason("good").startswith("left out, ")


def test_no_part_begins_that_would_soon_be_cut_off(tmp_path: Path) -> None:
    bed = Bed(tmp_path, budget_s=18.0)
    bed.run(("good", "measures"))
    assert bed.reason("good") == bed.reason("measures") == "left out, because too little time was left"


def test_a_close_from_outside_ends_a_process_that_ignores_the_request(bed: Bed) -> None:
    worker = threading.Thread(target=bed.run, args=(("leaves", "good"),))
    worker.start()
    limit_s = time.monotonic() + 60
    while not bed.names("leaves"):
        assert time.monotonic() < limit_s
        time.sleep(0.01)
    bed.supervisor.close()
    worker.join(60)
    assert not worker.is_alive()
    assert bed.names("good") == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(bed.report.parts["leaves"][0].numbers["pid"])), 0)


def test_checks_come_first_and_what_is_timed_runs_alone() -> None:
    plan = plan_run(is_dry=False, num_cores=16)
    checks, times = plan.stages
    assert len(checks) == 7  # four share the kernels
    assert [lane.number for lane in checks if lane.of == 4] == [0, 1, 2, 3]
    assert len(times) == 1
    longest_s = max(sum(part.limit_s for part in lane.parts) for lane in checks)
    assert longest_s <= 150  # of 540 s
    assert plan_run(is_dry=True, num_cores=16).width == 1
