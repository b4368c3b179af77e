"""The native kernels are compiled into a cache, fail without an exception, and run on lesser processors."""

import logging
import os
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from textmill_shard.native import build
from textmill_shard.native.build import FLAGS, load_library
from textmill_shard.native.kernels import load_kernels

from tests.fakes.attention_cases import assert_close, run_both
from tests.fakes.native_cases import Piece, native_kernels


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    native_kernels()


def test_library_is_compiled_once_into_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "native"
    flags = ("-O0", *FLAGS[1:])  # quick to compile
    assert load_library(folder, flags=flags) is not None
    (built,) = folder.iterdir()
    first = built.stat()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_library(folder, flags=flags) is not None
    assert built.stat().st_mtime_ns == first.st_mtime_ns
    assert load_library(folder, flags=(*flags, "-DOTHER")) is not None
    assert len(list(folder.iterdir())) == 2


def test_failed_compile_gives_none_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_library(tmp_path, flags=("--no-such-flag",)) is None
    assert [record.message for record in caplog.records] == ["native kernels did not compile and are off"]
    assert list(tmp_path.iterdir()) == []


def test_missing_compiler_gives_none_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_library(tmp_path / "cache") is None
    assert [record.message for record in caplog.records] == ["no C compiler found: native kernels are off"]


QUICK = ("-O0", *FLAGS[1:])  # quick to compile


def test_cache_that_cannot_be_made_costs_one_line_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with caplog.at_level(logging.WARNING):
        library = load_library(tmp_path / "file" / "cache", flags=QUICK)
    assert library is not None
    assert library.textmill_features is not None
    [record] = caplog.records
    assert record.message.startswith("native kernels were compiled for this process alone")
    assert "Not a directory" in record.error  # type: ignore[attr-defined]
    assert list(temporary.iterdir()) == []


def test_compiler_that_has_no_room_in_the_cache_gets_a_temporary_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    full = tmp_path / "full"
    words = "/usr/bin/ld: final link failed: No space left on device"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *"-o {full}/"*) echo "{words}" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    with caplog.at_level(logging.WARNING):
        assert load_library(full, flags=QUICK) is not None
    [record] = caplog.records
    assert record.error == words  # type: ignore[attr-defined]
    assert list(full.iterdir()) == []


def test_no_place_at_all_gives_none_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with caplog.at_level(logging.WARNING):
        assert load_library(tmp_path / "file" / "cache", flags=QUICK) is None
    assert [record.message for record in caplog.records] == ["native kernels cannot be built and are off"]


def test_shards_that_start_together_all_get_the_library(tmp_path: Path) -> None:
    folder, flags = tmp_path / "cache", ("-O0", *FLAGS[1:])
    with ThreadPoolExecutor(3) as threads:
        libraries = list(threads.map(lambda _: load_library(folder, flags=flags), range(3)))
    assert all(library is not None and library.textmill_features is not None for library in libraries)
    assert len(list(folder.iterdir())) == 1  # nothing is left of the attempts that came second


def test_another_processor_gets_code_of_its_own(tmp_path: Path) -> None:
    folder, flags = tmp_path / "cache", ("-O0", *FLAGS[1:])
    for number, features in enumerate(("sse2 avx2", "sse2 avx2 avx512f", "sse2 avx2")):
        cpu_info = tmp_path / f"cpuinfo-{number}"
        cpu_info.write_text(f"processor : {number}\nflags : {features}\ncpu MHz : {number}\n")
        assert load_library(folder, flags=flags, cpu_info=cpu_info) is not None
    assert len(list(folder.iterdir())) == 2


def test_library_that_others_could_write_is_made_anew(tmp_path: Path) -> None:
    flags = ("-O0", *FLAGS[1:])
    load_library(tmp_path, flags=flags)
    (built,) = tmp_path.iterdir()
    built.unlink()  # it is loaded: cutting the mapped file itself would kill this process
    built.write_bytes(b"not a library")
    built.chmod(0o777)
    assert load_library(tmp_path, flags=flags) is not None
    assert stat.S_IMODE(built.stat().st_mode) == 0o700


@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_code_for_lesser_processors_gives_the_same(tmp_path: Path, march: str) -> None:
    if build.platform.machine() != "x86_64":
        pytest.skip("the processors are named for x86_64")
    flags = ["-O1", f"-march={march}", *FLAGS[2:]]
    kernels = load_kernels(tmp_path, num_threads=1, flags=flags)
    assert kernels is not None
    torch.manual_seed(3)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(9, 64).to(dtype), torch.randn(70, 64).to(dtype)
        out = kernels.linear(x, kernels.pack(weight))
        expected = x.double() @ weight.double().T
        assert (out - expected).abs().max() / expected.abs().max() < 1e-5
        assert_close(run_both(dtype=dtype, kernels=kernels, pieces=(Piece(130, 1), Piece(37, 33))), dtype)
    kernels.close()
