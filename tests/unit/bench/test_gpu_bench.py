"""A dry run of the benchmark of a GPU drives every part, and the paper figures are those of the document."""

import json
from pathlib import Path

import pytest
import torch

from bench.gpu import kernel_checks
from bench.gpu.__main__ import main
from bench.gpu.report import Report, Row
from bench.gpu_paper import STEPS, Shape, costs, extra_costs, lines

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
PARTS = [
    "Machine",
    "Kernels beside plain torch",
    "Tokens of the step loop",
    "A server",
    "Equal logits of a llama of random weights",
    "Steps of a llama of random weights",
    "What requests and flags add to a step",
    "Streams",
]
CHECKS = slice(1, 5)  # the parts whose rows demand something


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.kernels
@pytest.mark.slow  # steps of whole models in the interpreter, and a server, take a minute on a busy machine
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of infinities, which the interpreter computes with
def test_a_dry_run_drives_every_part_and_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main(["--dry", "--report", str(file)]) == 0, capsys.readouterr()
    report = json.loads(file.read_text())
    assert list(report["parts"]) == PARTS
    assert report["skipped"] == {}
    kernels = {row["name"].partition(":")[0] for row in report["parts"][PARTS[1]]}
    assert kernels == {"paged_attention", "write_kv", "rms_norm", "gate_up", "scan_parts", "shrink", "expand", "gumbel"}
    names = [row["name"] for row in report["parts"][PARTS[1]]]
    for word in ("over fp8_e4m3fn", "over fp8_e5m2", "repetition, counts, bias, mask, temperature"):
        assert any(word in name for name in names)
    assert all(row["is_fine"] for part in PARTS[CHECKS] for row in report["parts"][part])
    assert file.with_suffix(".trace.json").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert all(f"### {part}" in printed for part in PARTS)


def test_a_kernel_that_errs_fails_the_run_and_the_other_parts_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_checks, "_error_of", lambda *_: 0.5)
    monkeypatch.setattr("bench.gpu.steps.make_runner", lambda *_: 1 / 0)
    monkeypatch.setattr("bench.gpu.loop_checks.check_loop", lambda *_: iter([Row("loop", {}, is_fine=True)]))
    monkeypatch.setattr("bench.gpu.server_check.check_server", lambda *_: iter([Row("server", {}, is_fine=True)]))
    file = tmp_path / "report.json"
    assert main(["--dry", "--report", str(file)]) == 1
    report = json.loads(file.read_text())
    assert not any(row["is_fine"] for row in report["parts"][PARTS[1]])
    assert set(report["skipped"]) == set(PARTS[4:])
    assert "failed: ZeroDivisionError" in report["skipped"][PARTS[4]]
    assert set(report["parts"]) == set(PARTS[:4])
    assert "not as demanded: Kernels beside plain torch: paged_attention" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--dry" in capsys.readouterr().err


def test_a_report_is_whole_after_every_part(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.json")
    report.add("one", Row("a", {"ms": 1.5}))
    report.write()
    report.add("two", Row("b", {"error": 0.5}, is_fine=False))
    assert list(json.loads(report.file.read_text())["parts"]) == ["one"]
    report.write()
    assert report.faults == ["two: b"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


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
