"""A dry run of the benchmark of a GPU drives every part, and the paper figures are those of the document."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.kv_type import use_kv_type
from textmill_shard.triton_kernels.variants import VARIANTS
from torch.autograd import DeviceType

from bench.gpu import kernel_checks, rates, server_check, step_kernels, steps, streams
from bench.gpu import parts as parts_file
from bench.gpu import setting as setting_file
from bench.gpu.__main__ import main
from bench.gpu.kernel_checks import check_kernels, worst
from bench.gpu.loop import LoopRun, StepTimes
from bench.gpu.messages import CannotRun, Job
from bench.gpu.plan import plan_run
from bench.gpu.report import Report, Row
from bench.gpu.setting import Setting, check_interpreter, make_setting
from bench.gpu.supervisor import Refused, Supervisor
from bench.gpu_paper import STEPS, Shape, attention_lines, costs, extra_costs, lines

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
PARTS = [
    "Kernels beside plain torch",
    "Tokens of the step loop",
    "A model of files",
    "A server",
    "Machine",
    "Equal logits of a llama of random weights",
    "Steps of a llama of random weights",
    "Streams",
    "What a start measures",
    "Kernels of steps",
    "Trace",
    "Continuous batching of transformers",
    "What requests and flags add to a step",
]
KERNELS = PARTS[0]
DEMANDING = (KERNELS, PARTS[1], PARTS[2], PARTS[3], PARTS[5])  # the parts whose rows demand something


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.kernels
@pytest.mark.slow  # steps of whole models in the interpreter, and a server, take a minute on a busy machine
@pytest.mark.timeout(900)
def test_a_dry_run_drives_every_part_and_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main(["--dry", "--report", str(file)]) == 0, capsys.readouterr()
    report = json.loads(file.read_text())
    assert list(report["parts"]) == PARTS
    assert report["skipped"] == {}
    assert set(report["seconds"]) == set(PARTS)
    kernels = {row["name"].partition(":")[0] for row in report["parts"][KERNELS]}
    assert kernels == {variant.kernel for variant in VARIANTS} - {"merge_splits", "merge_parts"}  # parts of others
    names = [row["name"] for row in report["parts"][KERNELS]]
    for word in ("over fp8_e4m3fn", "over fp8_e5m2", "changes, temperature, candidates"):
        assert any(word in name for name in names)
    assert all(row["is_fine"] for part in DEMANDING for row in report["parts"][part])
    aims = [row["aim"] for rows in report["parts"].values() for row in rows if row["aim"]]
    assert len(aims) == 5
    assert file.with_suffix(".trace.json.gz").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert all(f"### {part}" in printed for part in PARTS)


def test_the_parts_of_the_plan_are_those_of_the_report() -> None:
    assert list(plan_run(is_dry=False, num_cores=16).names) == PARTS


def test_a_machine_without_a_gpu_is_told_why_in_the_report_too_and_nothing_of_an_earlier_run_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setting_file, "why_no_gpu", lambda: "the driver is too old")
    with pytest.raises(CannotRun, match=r"torch sees no GPU \(the driver is too old\): --dry runs ever") as refusal:
        make_setting(is_dry=False, left_s=1.0)

    def refuse(*_: object) -> None:
        raise Refused(str(refusal.value))

    monkeypatch.setattr(Supervisor, "run", refuse)
    file = tmp_path / "new" / "report.json"
    file.parent.mkdir()
    for suffix in (".json", ".md", ".log", ".trace.json.gz"):
        file.with_suffix(suffix).write_text("of an earlier run")
    assert main(["--report", str(file)]) == 2
    assert "nothing was run, because torch sees no GPU (the driver is too old)" in capsys.readouterr().err
    report = json.loads(file.read_text())
    assert report["parts"] == {}
    assert report["skipped"] == {name: [f"not run, because {refusal.value}"] for name in PARTS}
    assert "the driver is too old" in file.with_suffix(".md").read_text()
    assert sorted(path.name for path in file.parent.iterdir()) == ["report.json", "report.md"]


def test_a_run_computes_float32_products_as_a_shard_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # as the environment of NVIDIA's images of torch asks
        assert make_setting(is_dry=False, left_s=1.0).device == torch.device("cuda:0")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_refusal_behind_parts_that_have_run_names_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(supervisor: Supervisor, *_: object) -> None:
        supervisor._report.took(KERNELS, 3.0)
        raise Refused("a package is missing")

    monkeypatch.setattr(Supervisor, "run", refuse)
    assert main(["--report", str(tmp_path / "report.json")]) == 2
    assert "not all was run, because a package is missing" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "report.json").read_text())["skipped"]) == PARTS[1:]


def test_the_tables_of_a_run_that_a_signal_ends_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(supervisor: Supervisor, *_: object) -> None:
        supervisor._report.add("Machine", Row("copy", {"GB/s": 4300.0}))
        raise SystemExit(143)

    monkeypatch.setattr(Supervisor, "run", end)
    with pytest.raises(SystemExit):
        main(["--report", str(tmp_path / "new" / "report.json")])
    assert "| copy | 4300 |" in capsys.readouterr().out


def test_without_a_compiler_what_needs_kernels_says_so_and_the_rest_runs(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    reason = setting_file._why_no_kernels(9, 0)
    assert reason.startswith("Triton builds its launchers with a C compiler, and none is there")
    assert "compute capability" in setting_file._why_no_kernels(7, 5)
    monkeypatch.setattr(parts_file, "make_setting", lambda **_: replace(setting, no_kernels=reason))
    bench = parts_file.start(Job(table="", is_dry=False, left_s=60.0, parts=(), trace_file=""))
    parts = bench.parts(lambda item: None)
    assert set(parts) == set(PARTS)
    for name in set(PARTS) - {"Machine", "A model of files", "A server", "Continuous batching of transformers"}:
        with pytest.raises(CannotRun, match="none is there: gcc or clang"):
            next(parts[name]())
    assert [row.name for row in parts["Machine"]()][1:] == ["copy of memory", "product of matrices in bfloat16"]


class FakeEvent:
    """A mark on the clock of a made-up device."""

    now_ms = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = FakeEvent.now_ms

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at_ms - self.at_ms


@pytest.fixture
def timed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Return a setting that takes the CPU for a GPU whose clock only moves by hand."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return replace(setting, is_dry=False)


@pytest.mark.parametrize("is_cold", [False, True])
def test_a_run_is_timed_by_the_median_on_the_clock_of_the_device_behind_warm_ups(
    timed: Setting, monkeypatch: pytest.MonkeyPatch, *, is_cold: bool
) -> None:
    taken_ms = [100.0, 100.0, 100.0, 7.0, 1.0, 5.0, 90.0, 4.0]  # of the device, which starts with three warm-ups
    read = []

    def run() -> None:
        FakeEvent.now_ms += taken_ms.pop(0)

    def read_other_memory(_: Setting) -> None:
        read.append(taken_ms[0])
        FakeEvent.now_ms += 1000.0  # which no run is charged for

    monkeypatch.setattr(Setting, "_read_other_memory", read_other_memory)
    assert timed.time_ms(run, repeats=5, is_cold=is_cold) == 5.0
    assert read == ([7.0, 1.0, 5.0, 90.0, 4.0] if is_cold else [])


def test_a_device_is_busy_for_a_moment_before_its_rates_are_measured(
    timed: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter([10.0, 10.2, 10.4, 10.51])
    monkeypatch.setattr(time, "monotonic", lambda: next(now_s))
    runs: list[int] = []
    rates._wake(timed, lambda: runs.append(1))
    assert len(runs) == 3  # behind which half a second is over


def test_other_memory_is_larger_than_the_cache_of_a_gpu(timed: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    monkeypatch.setattr(torch.Tensor, "sum", lambda tensor: summed.append(tensor.nbytes))
    timed._read_other_memory()
    timed._read_other_memory()
    assert summed == [256 * 1024**2] * 2
    assert len(timed._other) == 1  # taken once


def test_logits_that_are_wrong_are_a_fault_and_the_steps_are_timed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object, **__: object) -> None:
        raise UnsupportedModelError("the logits differ by 0.3")

    monkeypatch.setattr(steps, "check_against_probe", check)
    made = steps.make_runner(setting, steps.DRY)
    assert made.row().is_fine is False
    assert made.row().numbers == {"fault": "the logits differ by 0.3"}
    monkeypatch.setattr(steps, "make_runner", lambda *_: made)
    monkeypatch.setattr(steps, "_time_decode", lambda *arguments: Row(f"decode of {arguments[-1]}", {}))
    monkeypatch.setattr(steps, "_time_prefill", lambda *_: Row("prefill", {}))
    monkeypatch.setattr(parts_file, "make_setting", lambda **_: setting)
    bench = parts_file.start(Job(table="", is_dry=True, left_s=60.0, parts=(), trace_file=""))
    parts = bench.parts(lambda item: None)
    assert next(parts["Equal logits of a llama of random weights"]()).is_fine is False
    # The largest step comes last, because it may find no memory.
    names = [row.name for row in parts["Steps of a llama of random weights"]()]
    assert names == ["decode of 1", "prefill", "decode of 2"]


def test_a_step_without_a_graph_is_a_fault_and_is_timed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = steps.make_runner(setting, steps.DRY).runner
    monkeypatch.setattr(runner, "record_graphs", lambda *_, **__: False)
    row = next(steps.time_steps(setting, runner))
    assert row.is_fine is False
    assert row.numbers["graph"] == "none, for the reason in the log"
    assert {"ms", "ratio"} <= row.numbers.keys()


def test_kernels_of_a_step_are_those_of_the_device_the_longest_first() -> None:
    def entry(key: str, device: DeviceType, count: int, us: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=device, count=count, self_device_time_total=us, self_cpu_time_total=7.0
        )

    averages = [
        entry("cudaLaunchKernel", DeviceType.CPU, 9, 0.0),
        entry("rms_norm", DeviceType.CUDA, 64, 12.0),
        entry("paged_attention", DeviceType.CUDA, 32, 40.0),
        entry("aten::mm", DeviceType.CPU, 9, 52.0),  # an operation, whose kernels have entries of their own
        entry("Memset", DeviceType.CUDA, 1, 0.0),
    ]
    found = step_kernels.times_of(averages, is_dry=False)
    assert [(kernel.name, kernel.launches, kernel.us) for kernel in found] == [
        ("paged_attention", 32, 40.0),
        ("rms_norm", 64, 12.0),
    ]
    assert [kernel.name for kernel in step_kernels.times_of(averages, is_dry=True)] == ["cudaLaunchKernel", "aten::mm"]
    whole, first, _ = step_kernels._rows("decode", found, 26.0)
    assert whole.numbers == {"launches": 96, "us": 52.0, "us on paper": 26.0}
    assert first.name == "decode: paged_attention"
    assert first.numbers["share"] == pytest.approx(40 / 52)


@pytest.mark.parametrize(
    ("whole_s", "host_s", "is_met"), [(6.2e-3, 0.4e-3, True), (6.2e-3, 0.6e-3, False), (6.4e-3, 0.4e-3, False)]
)
def test_a_host_that_is_late_shows_beside_a_step_alone(
    timed: Setting, whole_s: float, host_s: float, *, is_met: bool
) -> None:
    """The device's own time of a step counts the wait for the launch too, and is the whole step in each case."""
    timed.rates["decode of 2"] = 6.0
    found = LoopRun(tokens=[[1] * 3] * 2, seconds=1.0, decodes=[StepTimes(whole_s, whole_s, host_s)] * 3)
    row = streams._row(timed, "2 streams", found, is_judged=True, is_as_named=True)
    assert row.meets_aim is is_met


def test_the_pool_of_a_timed_step_is_full_of_noise_in_each_type(setting: Setting) -> None:
    runner = steps.make_runner(setting, steps.DRY).runner
    for dtype in (None, torch.float8_e4m3fn):
        if dtype is not None:
            use_kv_type("fp8_e4m3fn", runner, trial_tokens=16)
        steps.fill_pool(runner, 3)
        pool = runner.kv_pool
        assert pool is not None
        for tensor in (*pool.keys, *pool.values):
            assert tensor.dtype is (dtype or torch.float32)
            assert 0.5 < float(tensor.float().std()) < 2.0
            assert bool(tensor.float().isfinite().all())


def test_the_rate_of_transformers_counts_from_the_first_request_to_the_last_token(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class FakeModel:
        def generate_batch(self, prompts: list[list[int]], **options: object) -> dict[str, SimpleNamespace]:
            calls.append((prompts, options["persistent_manager"]))
            num_new = options["generation_config"].max_new_tokens  # type: ignore[attr-defined]
            return {
                str(place): SimpleNamespace(
                    generated_tokens=[0] * num_new, error=None, created_time=2.0 + place, lifespan=(9.0, 6.0 - place)
                )
                for place in range(len(prompts))
            }

        def destroy_cached_continuous_batching_manager(self) -> None:
            calls.append("destroyed")

    monkeypatch.setattr(streams, "make_model", lambda *_: FakeModel())
    requests = [streams.Request([1, 2, 3], 4), streams.Request([5, 6, 7], 4)]
    assert streams._transformers_rate(setting, requests) == pytest.approx(8 / (6.0 - 2.0))
    # A warm-up whose prompts transformers cannot find again, in the memory and with the graphs that the run then finds.
    assert calls == [([[3, 2, 1], [7, 6, 5]], True), ([[1, 2, 3], [5, 6, 7]], True), "destroyed"]


@pytest.fixture
def setting() -> Setting:
    return make_setting(is_dry=True, left_s=1.0)


def rows_of(
    setting: Setting, *, number: int = 0, of: int = 1, done: tuple[str, ...] = ()
) -> tuple[list[str], list[Row]]:
    """Return the items that were begun, and the rows."""
    begun: list[str] = []
    return begun, list(check_kernels(setting, number=number, of=of, done=done, begin=begun.append))


def test_a_kernel_that_errs_is_a_fault(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "_error_of", lambda *_: 0.5)
    begun, rows = rows_of(setting)
    assert [row.name for row in rows] == begun
    assert [row.is_fine for row in rows] == [False] * len(rows)
    assert len(rows) > 10


def test_a_kernel_that_fails_is_a_fault_and_the_others_are_compared(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: Iterator[object] = iter([RuntimeError("ptxas says\nmuch"), *[0.0] * 100])

    def error_of(*_: object) -> float:
        error = next(errors)
        if isinstance(error, Exception):
            raise error
        return 0.0

    monkeypatch.setattr(kernel_checks, "_error_of", error_of)
    _, rows = rows_of(setting)
    assert rows[0].numbers == {"failed": "RuntimeError: ptxas says"}
    assert [row.is_fine for row in rows] == [False] + [True] * (len(rows) - 1)


def test_processes_share_the_kernels_and_pass_over_those_that_are_done(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_checks, "_error_of", lambda *_: 0.0)
    whole, _ = rows_of(setting)
    assert sorted(whole) == sorted(item for number in range(3) for item in rows_of(setting, number=number, of=3)[0])
    assert rows_of(setting, done=tuple(whole[:4]))[0] == whole[4:]


def test_no_number_is_the_worst_error() -> None:
    assert worst([0.25, math.nan]) == worst([math.nan, 0.25]) == math.inf
    assert worst([0.25, 0.5, 0.125]) == 0.5


def test_an_interpreter_that_numpy_breaks_is_named() -> None:
    check_interpreter("3.6.0", "2.3.5")
    check_interpreter("3.7.0", "2.4.0")
    check_interpreter("3.10.1", "3.0.0")
    with pytest.raises(CannotRun, match=r"needs numpy below 2\.4 beside Triton 3\.6\.0"):
        check_interpreter("3.6.0", "2.10.1")


def test_all_packages_that_the_server_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_check, "IMPORTS", "import json, no_such_package.inside")
    assert server_check.missing_packages() == ["no_such_package"]  # no requirement of the project
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["numpy>=2", "no-such-package[extra]>=1 ; python_version > \'3\'"]\n'
        '[project.optional-dependencies]\nrouter = ["other_lacking==2"]\nshard = ["torch>=2.11", "other_lacking"]\n'
    )
    monkeypatch.setattr(server_check, "PROJECT_FILE", project)
    assert server_check.missing_packages() == ["no-such-package", "other_lacking"]
    monkeypatch.setattr(server_check, "IMPORTS", "import json")
    assert server_check.missing_packages() == []
    monkeypatch.setattr(server_check, "IMPORTS", "import textmill_shard.no_such_file")
    with pytest.raises(RuntimeError, match="cannot be imported"):
        server_check.missing_packages()


def test_a_report_is_whole_after_every_row_and_in_the_order_of_the_plan(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json", ["two", "one"])
    report.add("one", Row("a", {"ms": 1.5}))
    report.write()
    report.add("two", Row("b", {"error": 0.5}, is_fine=False))
    assert list(json.loads(report.file.read_text())["parts"]) == ["one"]
    report.write()
    assert list(json.loads(report.file.read_text())["parts"]) == ["two", "one"]
    assert report.faults == ["two: b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.md"]
    assert report.file.with_suffix(".md").read_text().split("\n")[1] == "### two"


def test_tables_tell_faults_aims_seconds_and_what_is_not_whole(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    report.add("steps", Row("1 row", {"ms": 3.9, "ratio": 1.1}, aim="ratio <= 1.25", meets_aim=True))
    report.add("steps", Row("8 rows", {"ms": 9.0, "ratio": 2.0}, aim="ratio <= 1.25", meets_aim=False))
    report.took("steps", 12.4)
    report.skip("steps", "cut off by the budget")
    report.add("checks", Row("tokens", {"other": 3.0}, is_fine=False))
    text = "\n".join(report.lines())
    assert "### steps, 12 s" in text
    assert "| 1 row | 3.9 | 1.1 | ratio <= 1.25: met |  |" in text
    assert "| 8 rows | 9 | 2 | ratio <= 1.25: missed |  |" in text
    assert "not whole: cut off by the budget" in text
    assert "| tokens | 3 | NOT AS DEMANDED |" in text
    assert report.faults == ["checks: tokens"]  # a missed aim is no fault


def test_a_long_table_counts_the_kernels_and_shows_the_faulty_rows(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    for number in range(40):
        report.add("kernels", Row(f"scan: {number}", {"error": 0.001 * number, "allowed": 0.1}, is_fine=True))
    report.add("kernels", Row("gate: 1", {"failed": "no | result"}, is_fine=False))
    text = "\n".join(report.lines())
    assert "| scan | 40 | 40 | 0.39 |" in text
    assert "| gate | 1 | 0 |  |" in text
    assert "| gate: 1 | no / result | NOT AS DEMANDED |" in text


def test_paper_figures_of_the_document_are_those_of_the_formulas() -> None:
    text = DOCUMENT.read_text()
    for table in (lines(), attention_lines()):
        assert "\n".join(table) in text, "paste the output of python -m bench.gpu_paper"


def test_paper_figures_of_attention_and_of_a_product_by_hand() -> None:
    by_kernel = {cost.kernel: cost for cost in costs(Shape(), STEPS[1])}
    attention = by_kernel["`paged_attention`"]
    # 64 sequences of 1,024 places, 8 heads of 128 dims, keys and values of 2 bytes; queries and results of 32 heads.
    assert attention.num_bytes == 32 * (64 * 1024 * 8 * 128 * 2 * 2 + 64 * 32 * 128 * 2 * 2)
    assert attention.operations == 32 * 64 * 1024 * 32 * 128 * 2 * 2  # a product and a sum, for keys and for values
    assert attention.expected_us == pytest.approx(1e6 * attention.num_bytes / 4.3e12)
    extra = {cost.kernel: cost for cost in extra_costs(Shape(), STEPS[1])}
    # 32 parts of a row of 128,256 scores, each with 1,024 numbers of 8 bytes, which are written and read.
    assert extra["`scan_parts` with candidates, and their selection"].num_bytes == 64 * (
        128_256 * 4 + 32 * 1024 * 8 * 2
    )
    halved = extra["`paged_attention` over fp8 keys and values"]
    assert attention.num_bytes - halved.num_bytes == 32 * 64 * 1024 * 8 * 128 * 2
    # Each row reads A and B of its adapter: of q, k, v, out, gate, up and down, with the ranks 16.
    widths = (4096 + 4096, 4096 + 1024, 4096 + 1024, 4096 + 4096, 4096 + 14_336, 4096 + 14_336, 14_336 + 4096)
    products = [extra[f"`{kernel}` of rank 16, an adapter for each row"] for kernel in ("shrink", "expand")]
    assert sum(cost.operations for cost in products) == sum(2 * 16 * width for width in widths) * 64 * 32
    down = by_kernel["down"]
    assert down.num_bytes == 32 * 2 * (14_336 * 4096 + 64 * (14_336 + 4096))
    assert down.operations == 32 * 2 * 64 * 14_336 * 4096
    prefill = {cost.kernel: cost for cost in costs(Shape(), STEPS[2])}["down"]
    assert prefill.expected_us == pytest.approx(1e6 * prefill.operations / 780e12)
