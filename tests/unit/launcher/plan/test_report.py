"""The device for which a plan without `--device` is made."""

import pytest
from textmill_launcher.plan import machine, report
from textmill_launcher.settings import load_settings


@pytest.mark.parametrize(
    ("num_gpus", "devices", "expected"),
    [(1, None, "cuda"), (2, "1", "cuda"), (1, "", "cpu"), (1, "-1", "cpu"), (0, None, "cpu"), (0, "0", "cpu")],
)
def test_a_gpu_that_the_environment_hides_is_no_device_of_a_plan(
    num_gpus: int, devices: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_bytes", lambda: [1 << 30] * num_gpus)
    environ = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    assert report._device(load_settings([], environ)) == expected
