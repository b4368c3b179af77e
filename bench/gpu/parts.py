"""The parts of the benchmark, and what the parts of one process share."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.gpu import (
    extras,
    file_check,
    kernel_checks,
    loop_checks,
    plan,
    rates,
    server_check,
    start_check,
    step_kernels,
    steps,
    streams,
)
from bench.gpu.messages import CannotRun, Job
from bench.gpu.report import Row
from bench.gpu.setting import make_setting
from bench.gpu.steps import MadeRunner


def start(job: Job) -> "Bench":
    """Raises CannotRun where this machine cannot run the benchmark."""
    return Bench(job)


class Bench:
    """The setting of a run, and the runner of the large model once a part has asked for it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._setting = make_setting(is_dry=job.is_dry, left_s=job.left_s)
        self._setting.rates.update(job.rates)
        self._made: MadeRunner | None = None

    def parts(self, begin: Callable[[str], None]) -> Mapping[str, Callable[[], Iterator[Row]]]:
        setting, job = self._setting, self._job

        def check_kernels() -> Iterator[Row]:
            return kernel_checks.check_kernels(setting, number=job.number, of=job.of, done=job.done, begin=begin)

        def with_kernels(part: Callable[[], Iterator[Row]]) -> Callable[[], Iterator[Row]]:
            def run() -> Iterator[Row]:
                if setting.no_kernels:
                    raise CannotRun(setting.no_kernels)
                return part()

            return run

        steps_of_kernels = {
            plan.KERNELS: check_kernels,
            plan.LOOP: lambda: loop_checks.check_loop(setting),
            plan.EQUALITIES: lambda: steps.check_equalities(setting, self._make()),
            plan.STEPS: lambda: steps.time_steps(setting, self._make().runner),
            plan.STREAMS: lambda: streams.time_streams(setting, self._make().runner),
            plan.START: lambda: start_check.check_start(setting, self._make().runner),
            plan.KERNEL_TIMES: lambda: step_kernels.kernel_rows(setting, self._make().runner),
            plan.TRACE: lambda: streams.trace_steps(setting, self._make().runner, Path(job.trace_file)),
            plan.EXTRAS: lambda: extras.time_extras(setting, self._make().runner),
        }
        return {
            plan.MACHINE: lambda: rates.measure_rates(setting),
            plan.FILES: lambda: file_check.check_files(setting),
            plan.SERVER: lambda: server_check.check_server(setting),
            plan.TRANSFORMERS: self._time_transformers,
            **{name: with_kernels(part) for name, part in steps_of_kernels.items()},
        }

    @property
    def left_s(self) -> float:
        return self._setting.left_s

    @property
    def rates(self) -> Mapping[str, float]:
        return self._setting.rates

    def check_device(self) -> None:
        self._setting.check_device()

    def forget_models(self) -> None:
        self._made = None
        self._setting.free()

    def _time_transformers(self) -> Iterator[Row]:
        """Give transformers, which counts what the allocator keeps as taken, all but the weights of the runner."""
        if self._made is not None:
            self._made.runner.allocate_kv(1)
        self._setting.free()
        yield from streams.time_transformers(self._setting)
        self._setting.free()

    def _make(self) -> MadeRunner:
        if self._made is None:
            self._made = steps.make_runner(self._setting, steps.sizes_of(self._setting))
        return self._made
