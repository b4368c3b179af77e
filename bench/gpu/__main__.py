"""`python -m bench.gpu --budget-s 540`: correctness of the kernels and steps on a GPU, then their speed, then a report.

Needs torch, Triton, transformers, numpy and grpcio, and no installation of this checkout. Models come from random
weights. The parts run in processes of their own, so that a part that crashes or hangs leaves the others whole. The
report is written after every row, and what an earlier run has left under its name is taken away.
`--dry` runs every part in tiny shapes on a CPU, by Triton's interpreter.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench.gpu.plan import plan_run
from bench.gpu.report import Report
from bench.gpu.supervisor import Refused, Run, Supervisor


def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds that the run may take (default: 540)")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, by Triton's interpreter")
    parser.add_argument("--report", type=Path, default=Path("gpu-report.json"), help="file of the report")
    arguments = parser.parse_args(argv)
    plan = plan_run(is_dry=arguments.dry, num_cores=len(os.sched_getaffinity(0)))
    report = Report(arguments.report, plan.names)
    trace_file, log_file = (arguments.report.with_suffix(suffix) for suffix in (".trace.json.gz", ".log"))
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    for file in (trace_file, log_file):
        file.unlink(missing_ok=True)
    report.write()
    run = Run(
        table="bench.gpu.parts",
        is_dry=arguments.dry,
        ends_at=started + arguments.budget_s,
        trace_file=trace_file,
    )
    supervisor = Supervisor(run, report, log_file, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        supervisor.run(plan)
    except Refused as refusal:
        for name in plan.names:
            if name not in report.seconds:
                report.skip(name, f"not run, because {refusal}")
        report.write()
        print(f"{'not all' if report.seconds else 'nothing'} was run, because {refusal}", file=sys.stderr)
        return 2
    finally:
        supervisor.close()
        if report.parts:  # also of a run that a signal ends
            print("\n".join(report.lines()), flush=True)
    for fault in report.faults:
        print(f"not as demanded: {fault}", file=sys.stderr)
    print(f"\n{time.monotonic() - started:.0f} s; {arguments.report} has all rows")
    return bool(report.faults or report.skipped)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that no process of a part is left behind


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main())
