"""`python -m bench.gpu --budget-s 540`: correctness of the kernels and steps on a GPU, then their speed, then a report.

Needs torch, Triton, transformers, numpy and grpcio. Models come from random weights. The report is written after every
part. `--dry` runs every part in tiny shapes on a CPU, by Triton's interpreter.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textmill_shard.model.runner import ModelRunner

    from bench.gpu.report import Report, Row
    from bench.gpu.setting import Setting

LEAST_LEFT_S = 20.0  # with less time than this left no part begins


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds that the run may take (default: 540)")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, by Triton's interpreter")
    parser.add_argument("--report", type=Path, default=Path("gpu-report.json"), help="file of the report")
    arguments = parser.parse_args(argv)
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when the kernels are defined, in the imports below
    from bench.gpu.report import Report
    from bench.gpu.setting import make_setting

    try:
        setting = make_setting(is_dry=arguments.dry, budget_s=arguments.budget_s)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    report = Report(arguments.report)
    run_parts(setting, report)
    print("\n".join(report.lines()))
    for fault in report.faults:
        print(f"not as demanded: {fault}", file=sys.stderr)
    return bool(report.faults or report.skipped)


def run_parts(setting: "Setting", report: "Report") -> None:
    """Run the parts in their order while there is time, and write the report after each of them."""
    from bench.gpu import extras, kernel_checks, loop_checks, server_check, steps, streams

    made: list[ModelRunner] = []

    def runner() -> "ModelRunner":
        if not made:
            made.append(steps.make_runner(setting, steps.sizes_of(setting)))
        return made[0]

    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "Machine": lambda: _machine(setting),
        "Kernels beside plain torch": lambda: kernel_checks.check_kernels(setting),
        "Tokens of the step loop": lambda: loop_checks.check_loop(setting),
        "A server": lambda: server_check.check_server(setting),
        "Equal logits of a llama of random weights": lambda: steps.check_equalities(setting, runner()),
        "Steps of a llama of random weights": lambda: steps.time_steps(setting, runner()),
        "What requests and flags add to a step": lambda: extras.time_extras(setting, runner()),
        "Streams": lambda: streams.time_streams(setting, runner(), report.file.with_suffix(".trace.json")),
    }
    for name, part in parts.items():
        if setting.left_s < LEAST_LEFT_S and not setting.is_dry:
            report.skipped[name] = f"left out, {setting.left_s:.0f} s before the end"
        else:
            _run_part(setting, report, name, part)
        report.write()


def _run_part(setting: "Setting", report: "Report", name: str, part: "Callable[[], Iterator[Row]]") -> None:
    """Run one part. A part that fails leaves its rows and its reason, and the next part runs."""
    try:
        for row in part():
            report.add(name, row)
            if setting.left_s < 0:
                report.skipped[name] = "cut off by the budget"
                return
    except Exception as error:  # the other parts still tell something
        report.skipped[name] = f"failed: {type(error).__name__}: {error}"


def _machine(setting: "Setting") -> "Iterator[Row]":
    import torch

    from bench.gpu.report import Row

    name = "CPU, Triton's interpreter" if setting.is_dry else torch.cuda.get_device_name(setting.device)
    yield Row(name, {library: version(library) for library in ("torch", "triton", "transformers", "numpy")})
    size = 1 << 10 if setting.is_dry else 1 << 29
    source = torch.zeros(size, dtype=torch.bfloat16, device=setting.device)
    target = torch.empty_like(source)
    copy_ms = setting.time_ms(lambda: target.copy_(source))
    setting.rates["copy"] = 2 * source.nbytes / copy_ms * 1e3
    yield Row("copy of memory", {"GB/s": setting.rates["copy"] / 1e9})
    width = 64 if setting.is_dry else 8192
    a = torch.zeros(width, width, dtype=torch.bfloat16, device=setting.device)
    product_ms = setting.time_ms(lambda: a @ a)
    setting.rates["product"] = 2 * width**3 / product_ms * 1e3
    yield Row("product of matrices in bfloat16", {"TFLOP/s": setting.rates["product"] / 1e12})


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"\n{time.monotonic() - started:.0f} s")
    sys.exit(code)
