"""How each kernel is launched. Callers name the module, so that a test can put another launch in its place."""

from typing import Any

from textmill_shard.triton_kernels.constants import COMPILE_OPTIONS


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int = 1,  # as in the table of variants; the compiler's own choice is 3
) -> None:
    """Launch a kernel on the current stream of the current device, in the variant that the constants choose."""
    kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages, **COMPILE_OPTIONS)
