"""A sample of the kernels compiles for each GPU, fits it, and takes what docs/kernels.md says.

`make kernels` does the same for the whole table.
"""

import re
import shutil
import tomllib
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from textmill_shard.triton_kernels import variants
from textmill_shard.triton_kernels.variants import TARGETS, VARIANTS

from tests.kernels import compile_pool
from tests.kernels.compile_pool import compile_all, compile_remembered, memory_folder, source_digest
from tests.kernels.compile_variant import Usage
from tests.kernels.page import (
    KERNELS,
    MOST_NARROW_COPIES,
    PAGE,
    SHARED_LIMIT_BYTES,
    TRITON_VERSION,
    faults,
    is_version_of_page,
    row_of,
    stale_reasons,
)

REPOSITORY = Path(__file__).parents[2]
SAMPLES = [number for number, variant in enumerate(VARIANTS) if variant.is_sample]


@pytest.mark.slow  # compiles a dozen kernels for three targets, where their sources changed: half a minute of a core
def test_sample_compiles_fits_and_is_on_the_page() -> None:
    jobs = [(number, target) for number in SAMPLES for target in VARIANTS[number].targets]
    # In one process, because a second one would import the compiler again, and other tests have the other core.
    usages = compile_remembered(jobs, num_processes=1, memory=memory_folder())
    assert faults(usages, may_spill=not is_version_of_page()) == []
    if not is_version_of_page():
        return  # beside torch for CUDA, which brings a version of its own
    text = PAGE.read_text()
    for number, of_variant in groupby(usages, key=lambda usage: usage.variant):
        assert row_of(list(of_variant)) in text.splitlines(), f"{VARIANTS[number].name}: run make kernels-page"


def test_sample_has_each_kernel() -> None:
    assert {VARIANTS[number].kernel for number in SAMPLES} == {variant.kernel for variant in VARIANTS} == set(KERNELS)
    assert 10 <= len(SAMPLES) <= 16


def test_names_tell_variants_apart() -> None:
    names = [(variant.kernel, variant.name) for variant in VARIANTS]
    assert len(set(names)) == len(names)


def test_page_has_a_row_for_each_variant_and_no_other() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = [name for name in rows if name not in ("Kernel", "Variant", "Type") and not name.startswith("`")]
    assert listed == [variant.name for variant in VARIANTS]


def test_a_spill_without_a_reason_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage(variant=0, target=90, registers=255, local_bytes=8, shared_bytes=0)
    assert VARIANTS[0].why_spills is None
    [fault] = faults([usage])
    assert "spills 8 bytes a thread" in fault
    assert VARIANTS[0].name in fault
    assert faults([usage], may_spill=True) == []
    with_reason = (replace(VARIANTS[0], why_spills="because"), *VARIANTS[1:])
    monkeypatch.setattr("tests.kernels.page.VARIANTS", with_reason)
    assert faults([usage]) == []
    assert stale_reasons([replace(usage, local_bytes=0)])[0].startswith(f"paged_attention ({VARIANTS[0].name}) has a")


@pytest.mark.parametrize("target", TARGETS)
def test_more_shared_memory_than_the_gpu_has_is_a_fault(target: int) -> None:
    limit = SHARED_LIMIT_BYTES[target]
    fits = Usage(variant=0, target=target, registers=10, local_bytes=0, shared_bytes=limit)
    assert faults([fits]) == []
    [fault] = faults([replace(fits, shared_bytes=limit + 1)], may_spill=True)
    assert f"takes {limit + 1} bytes of shared memory, and the GPU has {limit}" in fault


def test_rounded_products_and_narrow_copies_are_faults() -> None:
    """Both are read from the code of the GPU: the interpreter multiplies exactly, and does not tell how it reads."""
    usage = Usage(variant=0, target=90, registers=10, local_bytes=0, shared_bytes=0, narrow_copies=MOST_NARROW_COPIES)
    assert faults([usage]) == []
    [rounded] = faults([replace(usage, has_tf32=True)])
    assert "rounds numbers of 32 bits in products" in rounded
    [narrow] = faults([replace(usage, narrow_copies=MOST_NARROW_COPIES + 1)])
    assert "less than 8 bytes at a time" in narrow
    shrink = next(number for number, variant in enumerate(VARIANTS) if variant.kernel == "shrink")
    [single] = faults([replace(usage, variant=shrink, narrow_reads=1)])
    assert "reads matrices by single numbers" in single
    assert faults([replace(usage, variant=shrink)]) == []


def test_a_kernel_that_does_not_compile_fails_with_the_words_of_the_compiler() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)a variant of .* fails:.*LLVM ERROR"):
        compile_all([(0, 7)], num_processes=1)  # no GPU has the compute capability 0.7


def test_the_digest_changes_with_the_target_and_the_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest((0, 90))
    assert source_digest((0, 80)) != before
    other = (replace(VARIANTS[0], num_warps=VARIANTS[0].num_warps * 2), *VARIANTS[1:])
    monkeypatch.setattr("tests.kernels.compile_pool.VARIANTS", other)
    assert source_digest((0, 90)) != before
    assert variants.VARIANTS is VARIANTS


def test_the_digest_covers_the_functions_of_other_files_that_a_kernel_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = next(number for number, variant in enumerate(VARIANTS) if variant.kernel == "gate_up")
    before = source_digest((gate, 90))
    folder = Path(shutil.copytree(compile_pool.DEVICE_FOLDER, tmp_path / "device"))
    monkeypatch.setattr(compile_pool, "DEVICE_FOLDER", folder)
    assert source_digest((gate, 90)) == before
    with (folder / "attention.py").open("a") as file:
        file.write("# its tanh has changed\n")
    assert source_digest((gate, 90)) != before


def test_the_page_and_the_extra_name_one_version() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["triton-test"] == [f"triton=={TRITON_VERSION}"]
    assert f"Triton {TRITON_VERSION} has compiled the page" in PAGE.read_text().replace("\n", " ")


def test_constraints_leave_to_torch_what_builds_for_cuda_pin() -> None:
    """Such builds want exact versions of these packages, so that no other version can be installed beside them."""
    names = re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert "torch" in names
    assert [name for name in names if re.match(r"(triton|nvidia|cuda)\b", name)] == []
