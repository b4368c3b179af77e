"""Names the machine, and measures the rates of its memory and of its products, by which the other parts are judged."""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch

from bench.gpu.report import Row
from bench.gpu.setting import Setting

BYTES_COPIED = 1 << 30
WIDTH = 8192  # of a large product
WAKE_S = 0.5
LIBRARIES = ("torch", "triton", "transformers", "numpy")


def measure_rates(setting: Setting) -> Iterator[Row]:
    """Yield the machine and its rates, and note the rates in the setting."""
    name = "CPU, Triton's interpreter"
    facts: dict[str, float | str] = {library: version(library) for library in LIBRARIES}
    if not setting.is_dry:
        properties = torch.cuda.get_device_properties(setting.device)
        name = properties.name
        facts |= {
            "CUDA": str(torch.version.cuda),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "GiB": properties.total_memory / 2**30,
        }
    yield Row(name, facts)
    width = 64 if setting.is_dry else WIDTH
    # Random numbers: a GPU multiplies zeros faster, because they take less power.
    a, b = (torch.randn(width, width, device=setting.device).to(torch.bfloat16) for _ in range(2))
    _wake(setting, lambda: a @ b)
    num_bytes = 1 << 10 if setting.is_dry else BYTES_COPIED
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    copy_ms = setting.time_ms(lambda: target.copy_(source))
    setting.rates["copy"] = 2 * num_bytes / copy_ms * 1e3  # read, and written
    yield Row("copy of memory", {"GB/s": setting.rates["copy"] / 1e9})
    product_ms = setting.time_ms(lambda: a @ b)
    setting.rates["product"] = 2 * width**3 / product_ms * 1e3
    yield Row("product of matrices in bfloat16", {"TFLOP/s": setting.rates["product"] / 1e12})


def _wake(setting: Setting, run: Callable[[], object]) -> None:
    """Keep the device busy for a moment, because the clocks of one that was idle are low."""
    ends_at = time.monotonic() + (0.0 if setting.is_dry else WAKE_S)
    while True:
        run()
        setting.synchronize()
        if time.monotonic() >= ends_at:
            return
