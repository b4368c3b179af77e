"""The backend that is asked for is taken or refused with a sentence, and without a wish the device decides."""

import logging
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from textmill_shard.attention.base import AttentionBackend, AttentionRule
from textmill_shard.errors import WRONG_SETTING, BackendRefused, exit_code_of
from textmill_shard.layouts.attention_choice import choose_attention
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.triton_kernels import loading
from textmill_shard.triton_kernels.flash_backend import FlashBesideKernels, kernels_of

from tests.fakes.native_cases import native_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
KERNELS_FILE = "textmill_shard.triton_kernels.kernels"


def chosen(asked: str | None, device: torch.device) -> str:
    kernels = native_kernels() if device.type == "cpu" else None
    backend = choose_attention(asked, device=device, dtype=torch.bfloat16, block_size=16, kernels=kernels)
    return backend.name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch tell the facts of an H100, on which nothing is launched."""
    facts = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(loading, "try_kernel", lambda kernels, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize(("asked", "expected"), [(None, "cpu"), ("reference", "reference")])
def test_backends_of_a_cpu(asked: str | None, expected: str) -> None:
    assert chosen(asked, CPU) == expected


def test_a_cpu_without_native_kernels_takes_the_reference() -> None:
    backend = choose_attention(None, device=CPU, dtype=torch.float32, block_size=16, kernels=None)
    assert backend.name == "reference"


@pytest.mark.parametrize("asked", ["triton", "flash"])
def test_backends_of_a_gpu_are_refused_on_a_cpu(asked: str) -> None:
    message = f"--attention-backend {asked} computes on a GPU, .* leave the flag out"
    with pytest.raises(BackendRefused, match=message) as refused:
        chosen(asked, CPU)
    assert exit_code_of(refused.value) == WRONG_SETTING


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("asked", "expected"), [(None, "triton"), ("triton", "triton"), ("reference", "reference")])
def test_backends_of_a_gpu(asked: str | None, expected: str) -> None:
    assert chosen(asked, GPU) == expected


def test_flash_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(BackendRefused, match="flash_attn_interface or flash_attn"):
        chosen("flash", GPU)


@pytest.mark.usefixtures("gpu")
def test_without_triton_the_reference_computes_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, KERNELS_FILE, None)  # as if the import of triton failed
    with caplog.at_level(logging.WARNING):
        assert chosen(None, GPU) == "reference"
    assert "gathers whole contexts" in caplog.text
    with pytest.raises(BackendRefused, match="--attention-backend triton cannot be had: the package triton"):
        chosen("triton", GPU)


@pytest.mark.usefixtures("gpu")
def test_triton_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BackendRefused, match="triton cannot be had: Triton builds its launchers with a C compiler"):
        chosen("triton", GPU)


def flash_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> AttentionBackend:
    """Choose FlashAttention, as if its package were installed."""
    package = SimpleNamespace(flash_attn_with_kvcache=None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    return choose_attention("flash", device=GPU, dtype=torch.bfloat16, block_size=16, kernels=None)


@pytest.mark.usefixtures("gpu")
def test_flash_takes_the_place_of_attention_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = flash_on_a_gpu(monkeypatch)
    assert backend.name == "flash"
    assert isinstance(backend, FlashBesideKernels)
    assert kernels_of(backend) is backend.kernels
    assert type(backend.kernels).__name__ == "TritonKernels"


@pytest.mark.usefixtures("gpu")
def test_flash_without_triton_computes_all_else_in_plain_torch_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, KERNELS_FILE, None)
    with caplog.at_level(logging.WARNING):
        backend = flash_on_a_gpu(monkeypatch)
    assert (backend.name, kernels_of(backend)) == ("flash", None)
    assert "norms, gates and sampling are computed in plain torch" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_heads_that_the_kernel_cannot_hold_are_refused() -> None:
    backend = choose_attention(None, device=GPU, dtype=torch.bfloat16, block_size=16, kernels=None)
    with pytest.raises(BackendRefused, match="heads of at most 256 dims, and a layer of this model has 512"):
        backend.accept(AttentionRule(scaling=1.0), LayerKvSpec(1, 512, 256))


def chosen_for_8_bits(kv_type: str, device: torch.device = GPU, *, asked: str | None = None) -> str:
    return choose_attention(
        asked, device=device, dtype=torch.bfloat16, block_size=256, kernels=None, kv_type=kv_type
    ).name


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kv_type", ["fp8_e4m3fn", "fp8_e5m2"])
def test_keys_and_values_of_8_bits_are_read_by_our_kernel_or_by_plain_torch(kv_type: str) -> None:
    assert chosen_for_8_bits(kv_type) == "triton"
    assert chosen_for_8_bits(kv_type, asked="reference") == "reference"
    backend = choose_attention(
        None, device=CPU, dtype=torch.float32, block_size=16, kernels=native_kernels(), kv_type=kv_type
    )
    assert backend.name == "reference"


@pytest.mark.usefixtures("gpu")
def test_flash_refuses_8_bits() -> None:
    with pytest.raises(BackendRefused, match=r"flash reads keys and values in the type of the weights, .* fp8_e5m2"):
        chosen_for_8_bits("fp8_e5m2", asked="flash")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_the_numbers_of_e4m3_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(BackendRefused, match=r"needs a GPU of compute capability 8\.9, .* has 8\.6: .* fp8_e5m2"):
        chosen_for_8_bits("fp8_e4m3fn")
    monkeypatch.setattr("textmill_shard.layouts.attention_choice.version", lambda name: {"triton": "3.7.0"}[name])
    assert chosen_for_8_bits("fp8_e5m2") == "triton"
    assert chosen_for_8_bits("fp8_e4m3fn", asked="reference") == "reference"


@pytest.mark.usefixtures("gpu")
def test_a_triton_that_cannot_compile_e5m2_for_the_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_shard.layouts.attention_choice.version", lambda name: {"triton": "3.6.0"}[name])
    assert chosen_for_8_bits("fp8_e5m2") == "triton"  # an H100 has the instruction
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(BackendRefused, match=r"fp8_e5m2 .* needs Triton 3\.7 or newer .* capability 8\.0, and 3\.6\.0"):
        chosen_for_8_bits("fp8_e5m2")
    assert chosen_for_8_bits("fp8_e5m2", asked="reference") == "reference"
    monkeypatch.setattr("textmill_shard.layouts.attention_choice.version", lambda name: {"triton": "3.10.0"}[name])
    assert chosen_for_8_bits("fp8_e5m2") == "triton"


def test_native_attention_refuses_slopes() -> None:
    backend = choose_attention(None, device=CPU, dtype=torch.float32, block_size=16, kernels=native_kernels())
    with pytest.raises(BackendRefused, match="knows no slopes"):
        backend.accept(AttentionRule(scaling=1.0, slopes_H=torch.zeros(2)), LayerKvSpec(1, 8, 8))
