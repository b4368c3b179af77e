"""Compiles variants of the kernels to machine code, and reads from the machine code which means a program takes.

No GPU is needed: Triton brings the assembler and `cuobjdump`. A process of Triton's interpreter cannot compile, so the
tests run this file as a process of its own: numbers of variants and targets come as JSON on the standard input, and one
line of JSON per variant and target goes to the standard output.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from textmill_shard import triton_kernels
from textmill_shard.triton_kernels.constants import COMPILE_OPTIONS
from textmill_shard.triton_kernels.variants import VARIANTS, Variant

DEVICE_FOLDER = Path(triton_kernels.__file__).parent / "device"
CUOBJDUMP_LIMIT_S = 60
Job: TypeAlias = tuple[int, int]  # place of a variant in VARIANTS, and compute capability
# Files of `device/` with the kernels in them.
KERNEL_FILES = {
    "paged_attention": "attention",
    "plan_tiles": "plan_tiles",
    "merge_splits": "attention",
    "write_kv": "kv_write",
    "rms_norm": "norm",
    "gate_up": "gate",
    "scan_parts": "row_scan",
    "merge_parts": "row_scan",
    "shrink": "low_rank",
    "expand": "low_rank",
    "expert_product": "experts",
    "gumbel": "noise",
    "unpack_rows": "unpack_rows",
}
PLAIN_STRIDES = ("table_stride", "rope_stride")  # strides that may be any number


@dataclass(frozen=True)
class Usage:
    """The means that one variant takes on one target."""

    variant: int  # place in VARIANTS
    target: int  # compute capability
    registers: int  # of a thread
    local_bytes: int  # of a thread: what does not fit into registers
    shared_bytes: int  # of a program
    has_tf32: bool = False  # whether products round numbers of 32 bits to 19
    # Instructions of a thread that copy less than 8 bytes to shared memory, and that read less than 4 to registers.
    narrow_copies: int = 0
    narrow_reads: int = 0


def compile_for(number: int, target: int) -> Usage:
    """Compile a variant for a target. Triton's errors pass through."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = VARIANTS[number]
    module = importlib.import_module(f"textmill_shard.triton_kernels.device.{KERNEL_FILES[variant.kernel]}")
    function = getattr(module, variant.kernel)
    signature, constants = _signature(function, variant)
    # Launches find pointers and strides to be multiples of 16 bytes or elements; other numbers are not specialised.
    rounded = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (name.endswith("stride") and name not in PLAIN_STRIDES)
    }
    compiled: Any = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=rounded),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages, **COMPILE_OPTIONS},
    )
    found = _resource_usage(compiled.asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
    return Usage(
        variant=number,
        target=target,
        registers=found["REG"],
        local_bytes=found["LOCAL"] + found["STACK"],
        shared_bytes=compiled.metadata.shared,
        has_tf32="tf32" in compiled.asm["ptx"],
        narrow_reads=len(re.findall(r"ld\.global[.\w]*\.[bsu](?:8|16)\b", compiled.asm["ptx"])),
        narrow_copies=len(re.findall(r"cp\.async\.ca\.shared\.global [^;]*, 0x[0-7],", compiled.asm["ptx"])),
    )


def _signature(function: Any, variant: Variant) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the type of each argument, and the values of those that are constants."""
    names = function.arg_names
    constants = dict(variant.constants)
    assert len(variant.types) + len(constants) == len(names), f"{variant.kernel} has the arguments {names}"
    signature: dict[str, str] = {}
    for name, kind in zip(names, (*variant.types, *("constexpr" for _ in variant.constants)), strict=True):
        signature[name] = kind or "constexpr"
        if kind is None:
            constants[name] = None
    return signature, constants


def _resource_usage(machine_code: bytes, cuobjdump: str) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        printed = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
            timeout=CUOBJDUMP_LIMIT_S,
        ).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


def main() -> None:
    for number, target in json.load(sys.stdin):
        print(json.dumps(asdict(compile_for(number, target))), flush=True)


if __name__ == "__main__":
    main()
