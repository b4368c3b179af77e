"""What Triton needs at run time on a GPU is looked for before the model is loaded, and is named where it is missing."""

from pathlib import Path

import pytest
import torch
from textmill_shard.triton_kernels.interface import Activation, DeviceKernels
from textmill_shard.triton_kernels.loading import TritonMissing, check_capability, check_compiler, try_kernel


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    (tmp_path / "Python.h").touch()
    return tmp_path


def put_program(folder: Path, name: str) -> None:
    (folder / name).touch(mode=0o755)


def test_machine_without_a_compiler_is_named(headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path, "cc")  # which Triton does not look for
    with pytest.raises(TritonMissing, match="none is there: gcc or clang, or CC"):
        check_compiler(headers)


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_compiler_in_the_path_suffices(
    name: str, headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path, name)
    check_compiler(headers)


def test_compiler_of_the_environment_suffices(headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/opt/cc")
    monkeypatch.setenv("PATH", str(tmp_path))
    check_compiler(headers)


def test_python_without_headers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc")
    with pytest.raises(TritonMissing, match=r"Python\.h is not there: install python3-dev"):
        check_compiler(tmp_path)


def test_gpu_that_is_too_old_is_named() -> None:
    for major, minor in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        check_capability(major, minor)
    with pytest.raises(TritonMissing, match=r"compute capability 8\.0 and more, and this one has 7\.5"):
        check_capability(7, 5)


class OnlyGates:
    """Stands in for kernels, of which the trial launches this one alone."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault
        self.launches: list[Activation] = []

    def gate_up(self, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        self.launches.append(activation)
        if self.fault is not None:
            raise self.fault
        return torch.nn.functional.silu(gate_TI) * up_TI


def as_kernels(only_gates: OnlyGates) -> DeviceKernels:
    return only_gates  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (PermissionError(13, "Permission denied", "/cache"), "PermissionError: .*/cache"),
        (RuntimeError("no kernel image is available"), "RuntimeError: no kernel image"),
    ],
    ids=["cache", "driver"],
)
def test_kernel_that_does_not_run_is_found_before_the_model_is_loaded(fault: Exception, words: str) -> None:
    with pytest.raises(TritonMissing, match=f"a trial kernel of Triton does not run: {words}"):
        try_kernel(as_kernels(OnlyGates(fault)), torch.device("cpu"))


def test_trial_launches_a_kernel() -> None:
    kernels = OnlyGates(None)
    try_kernel(as_kernels(kernels), torch.device("cpu"))
    assert kernels.launches == ["silu"]
