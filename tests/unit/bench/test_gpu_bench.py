"""A dry run of the benchmark of a GPU drives every part, and the paper figures are those of the document."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from textmill_shard.triton_kernels.variants import VARIANTS

from bench.gpu import kernel_checks, server_check
from bench.gpu.__main__ import main
from bench.gpu.kernel_checks import check_kernels, worst
from bench.gpu.plan import plan_run
from bench.gpu.report import Report, Row
from bench.gpu.setting import Setting, check_interpreter, make_setting
from bench.gpu.supervisor import Refused, Supervisor
from bench.gpu_paper import STEPS, Shape, costs, extra_costs, lines

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
PARTS = [
    "Kernels beside plain torch",
    "Tokens of the step loop",
    "A server",
    "Machine",
    "Equal logits of a llama of random weights",
    "Steps of a llama of random weights",
    "Streams",
    "Continuous batching of transformers",
    "Trace",
    "What requests and flags add to a step",
]
KERNELS = PARTS[0]
DEMANDING = (KERNELS, PARTS[1], PARTS[2], PARTS[4])  # the parts whose rows demand something


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
    for word in ("over fp8_e4m3fn", "over fp8_e5m2", "repetition, counts, bias, mask, temperature"):
        assert any(word in name for name in names)
    assert all(row["is_fine"] for part in DEMANDING for row in report["parts"][part])
    aims = [row["aim"] for rows in report["parts"].values() for row in rows if row["aim"]]
    assert len(aims) == 5
    assert file.with_suffix(".trace.json.gz").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert all(f"### {part}" in printed for part in PARTS)


def test_the_parts_of_the_plan_are_those_of_the_report() -> None:
    assert list(plan_run(is_dry=False, num_cores=16).names) == PARTS


def test_a_machine_without_a_gpu_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="torch sees no GPU: --dry runs everything") as refusal:
        make_setting(is_dry=False, left_s=1.0)

    def refuse(*_: object) -> None:
        raise Refused(str(refusal.value))

    monkeypatch.setattr(Supervisor, "run", refuse)
    assert main(["--report", str(tmp_path / "report.json")]) == 2
    assert "--dry" in capsys.readouterr().err


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
    with pytest.raises(RuntimeError, match=r"needs numpy below 2\.4 beside Triton 3\.6\.0"):
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
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


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
    assert "\n".join(lines()) in text, "paste the output of python -m bench.gpu_paper"


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
