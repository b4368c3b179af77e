"""Writes docs/kernels.md, or compares the page with what the compiler says: `make kernels-page`, `make kernels`.

Both compile every variant of the table for every target, in parallel, and remember variants whose sources are the same.
Beside a build of torch for CUDA another version of Triton is installed, and `make kernels` then only asks whether all
variants compile and fit.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from textmill_shard.triton_kernels.variants import TARGETS, VARIANTS

from tests.kernels.compile_pool import compile_all, compile_remembered, memory_folder
from tests.kernels.compile_variant import Job, Usage

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
TRITON_VERSION = "3.9.0"  # whose registers and bytes stand on the page; the extra `triton-test` of pyproject.toml
KIB = 1024
# The entries of a block table take up to 14. Keys and values read 4 bytes at a time would take at least 32 more.
MOST_NARROW_COPIES = 16
# `expand` reads a column of the product in between and the outputs, one by one. Without a hint that the matrices of
# adapters begin at multiples of 16 bytes, `shrink` and `expand` would read them so as well.
MOST_NARROW_READS = {"paged_attention": 0, "shrink": 0, "expand": 20}
# Shared memory that a program may have, from NVIDIA's CUDA programming guide (table of compute capabilities).
SHARED_LIMIT_BYTES = {80: 163 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB}
GPUS = {80: "A100", 89: "L4, L40S", 90: "H100, H200", 100: "B200"}
INTRODUCTION = f"""\
# Kernels of a GPU

`make kernels-page` writes this page from the table of variants (`shard/textmill_shard/triton_kernels/variants.py`) and
from what Triton's compiler makes of each row. `make kernels` compiles again and compares.

**No kernel has run on a GPU yet.** Each kernel has been compared with plain torch in Triton's interpreter, in fp32 on a
CPU, and each variant below has been compiled to machine code for four GPUs on a machine without one. So the page says
that the kernels compute the right numbers and fit the GPUs, and says nothing of their speed.

Triton {TRITON_VERSION} has compiled the page. Torch for CUDA brings a version of its own.
That of torch 2.13, 3.7.1, has compiled the sample of the table that the tests compile, and attention of heads of 64,
192 and 256 in 16 bits, with other registers, within the memory of the GPUs, and without a spill.

A cell holds the registers of a thread, and the shared memory of a program in KiB. `+ n` are bytes of a thread that do
not fit into the registers and lie in local memory, which is slow memory: a variant with such bytes fails the tests
unless its row gives the reason. A thread has at most 255 registers. A program may have 163 KiB of shared memory on
sm_80, 99 KiB on sm_89 (on RTX 30 and RTX 40 too), and 227 KiB on sm_90 and sm_100. A GPU with `-` does not have the
numbers of the variant, and is refused by name.

| Kernel | What the kernel does | Plain torch beside it |
|---|---|---|
"""
KV_TYPES = """
## Keys and values of 8 bits

`--kv-cache-dtype fp8_e4m3fn` or `fp8_e5m2` stores keys and values in 8 bits, times a scale of each head: that of the
checkpoint where there is one, or a measured one
([decision 38](decisions/0038-keys-and-values-in-8-bits-have-fixed-scales.md)). A stored number is off by at most 1/16
of its size (`fp8_e4m3fn`, 3 bits behind the point), or 1/8 (`fp8_e5m2`, 2 bits). Rows of the tables that say `over`
read or write such numbers. The interpreter does not round to 8 bits as a GPU does, so its test of the write compares
with the interpreter's own rounding. `python -m bench.kv_types --model M` measures what 8 bits change in the scores of
real text. SmolLM2-135M, computed in float32 on a CPU over 567 positions of English prose:

| Type | mean difference of a score | divergence | same likeliest token | perplexity |
|---|---|---|---|---|
| `float32` | 0.00 % | 0 | 100.0 % | 56.353 |
| `fp8_e4m3fn` | 9.53 % | 0.0065 | 93.1 % | 56.584 |
| `fp8_e5m2` | 16.93 % | 0.026 | 88.5 % | 58.126 |

The mean difference of a score is relative to the scores' distances from their mean, and the divergence is that of
Kullback and Leibler, in nats. The model is small and was stored in 4 bits, so its likeliest tokens are often near ties.
"""
KERNELS = {
    "paged_attention": (
        "attention of decode rows and prefill chunks over paged keys and values",
        "`attention/reference.py`",
    ),
    "plan_tiles": (
        "finds the tiles of a step, and cuts long contexts into parts",
        "`triton_kernels/tile_map.py`",
    ),
    "merge_splits": ("puts the parts of contexts together", "`attention/reference.py`"),
    "write_kv": ("turns queries and keys, and writes keys and values to their places", "`attention/kv_write.py`"),
    "rms_norm": ("norms rows, with a residual also adds", "`triton_kernels/plain_layers.py`"),
    "gate_up": ("activation of one half times the other half", "`triton_kernels/plain_layers.py`"),
    "scan_parts": (
        "penalties, bias and mask of a part of a row of scores, its best id, its normalisers and its candidates",
        "`sampling/row_scan.py`",
    ),
    "shrink": (
        "inputs of a layer times the first matrix of each row's adapter",
        "`triton_kernels/plain_layers.py`",
    ),
    "expand": ("adds this product times the second matrix to the layer's outputs", "`triton_kernels/plain_layers.py`"),
    "expert_product": ("rows times the matrices of their experts", "`triton_kernels/plain_layers.py`"),
    "gumbel": ("noise of draws, from seed, position and id", "`sampling/noise.py`"),
    "unpack_rows": (
        "makes tensors of the packed numbers of a decode step, at the head of a graph",
        "`triton_kernels/plain_rows.py`",
    ),
    "merge_parts": ("puts the parts of a row together", "`sampling/row_scan.py`"),
}


def all_jobs() -> list[Job]:
    return [(number, target) for number, variant in enumerate(VARIANTS) for target in variant.targets]


def is_version_of_page() -> bool:
    """Whether the installed Triton is the version whose numbers stand on the page."""
    return version("triton") == TRITON_VERSION


def faults(usages: Sequence[Usage], *, may_spill: bool = False) -> list[str]:
    """Return a sentence for each usage that a GPU or a rule does not allow. `may_spill`: a spill is no fault."""
    found = []
    for usage in usages:
        variant = VARIANTS[usage.variant]
        name = f"{variant.kernel} ({variant.name}) for sm_{usage.target}"
        limit = SHARED_LIMIT_BYTES[usage.target]
        if usage.shared_bytes > limit:
            found.append(f"{name} takes {usage.shared_bytes} bytes of shared memory, and the GPU has {limit}")
        if usage.local_bytes and variant.why_spills is None and not may_spill:
            found.append(f"{name} spills {usage.local_bytes} bytes a thread: take a smaller tile or give the reason")
        if usage.has_tf32:
            found.append(f"{name} rounds numbers of 32 bits in products, which are to be exact")
        if usage.narrow_copies > MOST_NARROW_COPIES:
            found.append(f"{name} copies keys and values by less than 8 bytes at a time")
        if usage.narrow_reads > MOST_NARROW_READS.get(variant.kernel, usage.narrow_reads):
            found.append(f"{name} reads matrices by single numbers of 8 or 16 bits")
    return found


def stale_reasons(usages: Sequence[Usage]) -> list[str]:
    """Return a sentence for each variant with a reason to spill that spills on no target."""
    spilling = {usage.variant for usage in usages if usage.local_bytes}
    return [
        f"{variant.kernel} ({variant.name}) has a reason to spill and does not spill"
        for number, variant in enumerate(VARIANTS)
        if variant.why_spills is not None and number not in spilling
    ]


def page(usages: Sequence[Usage]) -> str:
    return INTRODUCTION + "\n".join(_lines(usages))


def row_of(usages: Sequence[Usage]) -> str:
    """Return the row of one variant, from its usages on all targets."""
    variant = VARIANTS[usages[0].variant]
    found = {
        usage.target: f"{usage.registers}{f' + {usage.local_bytes}' if usage.local_bytes else ''}, "
        f"{usage.shared_bytes / KIB:.1f}"
        for usage in usages
    }
    cells = [found.get(target, "-") for target in TARGETS]
    return f"| {variant.name} | {' | '.join(cells)} | {variant.why_spills or ''} |"


def _lines(usages: Sequence[Usage]) -> Iterator[str]:
    for kernel, (purpose, reference) in KERNELS.items():
        yield f"| `{kernel}` | {purpose} | {reference} |"
    yield KV_TYPES.rstrip("\n")
    for kernel, of_kernel in groupby(usages, key=lambda usage: VARIANTS[usage.variant].kernel):
        yield f"\n## `{kernel}`\n"
        yield f"| Variant | {' | '.join(f'sm_{target} ({GPUS[target]})' for target in TARGETS)} | Reason to spill |"
        yield "|---" * (len(TARGETS) + 2) + "|"
        for _, of_variant in groupby(of_kernel, key=lambda usage: usage.variant):
            yield row_of(list(of_variant))
    yield ""


def _compile(target: int) -> int:
    """Compile each variant for a target with a release of Triton that the page does not speak of."""
    jobs = [job for job in all_jobs() if job[1] == target]
    usages = compile_all(jobs, num_processes=os.cpu_count() or 1)
    num_spilling = sum(usage.local_bytes > 0 for usage in usages)
    print(f"{len(usages)} variants compile for sm_{target}, of which {num_spilling} spill")
    too_large = [usage for usage in usages if usage.shared_bytes > SHARED_LIMIT_BYTES[target]]
    for usage in too_large:
        print(f"{VARIANTS[usage.variant].name} takes more shared memory than the GPU has")
    return bool(too_large)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare docs/kernels.md instead of writing it")
    parser.add_argument(
        "--compile", type=int, choices=TARGETS, metavar="SM", help="compile for one target, and compare with nothing"
    )
    arguments = parser.parse_args()
    if arguments.compile:
        return _compile(arguments.compile)
    check = arguments.check
    usages = compile_remembered(all_jobs(), num_processes=os.cpu_count() or 1, memory=memory_folder())
    complaints = faults(usages, may_spill=not is_version_of_page())
    if is_version_of_page():
        complaints += stale_reasons(usages)
        text = page(usages)
        if not check:
            PAGE.write_text(text)
        elif not PAGE.exists() or PAGE.read_text() != text:
            complaints.append("docs/kernels.md is older than the kernels: run make kernels-page")
    elif not check:
        complaints.append(f"the page is written with Triton {TRITON_VERSION}, and {version('triton')} is installed")
    for complaint in complaints:
        print(complaint)
    print(f"{len(VARIANTS)} variants for {len(TARGETS)} targets, {len(complaints)} complaints")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
