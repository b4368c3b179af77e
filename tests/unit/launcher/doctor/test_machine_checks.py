"""What the doctor says of the GPUs of a machine, with a driver and a build of torch that are made up."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from textmill_launcher.doctor import machine_checks
from textmill_launcher.doctor.finding import Finding, State
from textmill_launcher.settings import load_settings


def gpu_lines(num_gpus: int, driver: str = "580.159.03") -> list[str]:
    """Return what `nvidia-smi` answers to the query of `driver_lines`."""
    return [f"{index}, NVIDIA H200, {driver}, 143771 MiB, 4 MiB" for index in range(num_gpus)]


def look(
    monkeypatch: pytest.MonkeyPatch, argv: str, lines: list[str], build: tuple[str, str | None], **environ: str
) -> list[Finding]:
    """Return the findings of devices that are not ok."""
    monkeypatch.setattr(machine_checks, "driver_lines", lambda: lines)
    monkeypatch.setattr(machine_checks, "torch_build", lambda: build)
    settings = load_settings(argv.split(), environ)
    return [finding for finding in machine_checks._devices(settings) if finding.state is not State.OK]


@pytest.mark.parametrize(
    ("driver", "cuda", "least"),
    [
        ("570.86.10", "13.0", "580"),
        ("520.61.05", "12.8", "525"),
        ("580.159.03", "13.0", None),
        ("580.159.03", "12.8", None),
        ("1.2", "99.0", None),  # of a CUDA to come nobody knows the driver
        ("[N/A]", "13.0", None),
    ],
)
def test_a_driver_that_is_too_old_for_the_build_of_torch_is_a_warning(
    driver: str, cuda: str, least: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(monkeypatch, "--device cuda", gpu_lines(1, driver), (f"2.11.0+cu{cuda}", cuda))
    if least is None:
        assert found == []
        return
    [finding] = found
    assert (finding.subject, finding.state) == ("driver", State.WARNING)
    assert f"{driver} is older than torch 2.11.0+cu{cuda} for CUDA {cuda} asks for ({least})" in finding.found


@pytest.mark.parametrize(
    ("argv", "devices", "words"),
    [
        ("--num-shard 4", None, None),
        ("--num-shard 5", None, "4 GPUs for 5 shards"),
        ("--num-shard 2 --num-replicas 2", None, None),
        ("--num-shard 2 --num-replicas 3", None, "4 GPUs for 6 shards"),
        ("--num-shard 2", "3", "1 GPUs for 2 shards"),
        ("--num-replicas 2", "2,3", None),
        ("--num-replicas 3", "2,3", "2 GPUs for 3 shards"),
        ("--num-shard 2", "MIG-a,MIG-b", "1 GPUs for 2 shards"),
        ("", "0,1,0", "names 0 twice"),
        ("--device cuda", "", "0 GPUs for 1 shards"),
        ("--device cuda", "-1", "0 GPUs for 1 shards"),
        ("--device auto", "-1", None),  # which takes the CPU
        ("--device cpu --num-shard 9", "0,0", None),
    ],
)
def test_the_shards_of_all_replicas_are_compared_with_the_gpus_that_cuda_shows(
    argv: str, devices: str | None, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    found = look(monkeypatch, argv, gpu_lines(4), ("2.11.0+cu130", "13.0"), **environ)
    if words is None:
        assert found == []
        return
    [finding] = found
    assert (finding.subject, finding.state) == ("device", State.FAILURE)
    assert words in finding.found


@pytest.mark.parametrize(
    ("argv", "devices", "state"),
    [
        ("", None, State.OK),
        ("--num-shard 2", None, State.WARNING),
        ("", "0,1", State.WARNING),  # two shards, by the list
        ("--num-replicas 2", "0,1", State.OK),  # which exchange nothing
        ("--device cpu", "0,1", State.OK),
        ("", "0,0", State.OK),  # of which another finding tells
    ],
)
def test_shards_that_exchange_need_shared_memory_also_where_the_list_of_devices_counts_them(
    argv: str, devices: str | None, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "driver_lines", lambda: gpu_lines(4))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=256 * 1024**2, total=1024**3))
    environ = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    assert machine_checks._shared_memory(load_settings(argv.split(), environ)).state is state


@pytest.mark.parametrize(
    ("argv", "state"), [("", State.WARNING), ("--device cuda", State.WARNING), ("--device cpu", None)]
)
def test_a_driver_without_its_program_is_a_warning_because_the_shards_may_see_the_gpu(
    argv: str, state: State | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "_LOADED_DRIVER", tmp_path / "version")
    [absent] = look(monkeypatch, "--device cuda", [], ("2.11.0+cu130", "13.0"))
    assert absent.state is State.FAILURE
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03")
    found = look(monkeypatch, argv, [], ("2.11.0+cu130", "13.0"))
    assert [finding.state for finding in found] == ([] if state is None else [state])
    assert all("nvidia-smi does not answer" in finding.found for finding in found)
