"""FlashAttention is called with what its documentation asks for, and is refused with a sentence where it does not fit.

Stand-ins take the places of the packages, which exist for GPUs alone. Each computes from the arguments that the
package's documentation describes, sequence by sequence, with torch's own attention.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.attention.flash import FlashAttention, FlashStep, load_flash
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.errors import BackendRefused
from textmill_shard.layers.device_layers import DeviceRmsNorm
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.triton_kernels.flash_backend import FlashBesideKernels
from torch.nn.functional import scaled_dot_product_attention

from tests.fakes.plain_kernels import PlainKernels
from tests.fakes.tiny_models import make_tiny_llama

SPEC = LayerKvSpec(num_local_kv_heads=2, key_dim=8, value_dim=8)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    starts: torch.Tensor,
    lens: list[int],
    table: torch.Tensor,
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """Attend with a mask that is aligned to the end of each context, as both packages do with `causal`."""
    out = torch.empty_like(query)
    for row, length in enumerate(lens):
        begin, end = int(starts[row]), int(starts[row + 1])
        places = torch.arange(length)
        block_size = keys.shape[1]
        at = table[row].long()[places // block_size] * block_size + places % block_size
        positions = torch.arange(length - (end - begin), length).unsqueeze(1)
        sees = places <= positions
        if window != (-1, -1):
            sees &= (places >= positions - window[0]) & (places <= positions + window[1])
        out[begin:end] = scaled_dot_product_attention(
            query[begin:end].transpose(0, 1),
            keys.flatten(0, 1)[at].transpose(0, 1),
            values.flatten(0, 1)[at].transpose(0, 1),
            attn_mask=sees,
            scale=scale,
            enable_gqa=True,
        ).transpose(0, 1)
    return out


def version_3(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **given: Any) -> torch.Tensor:
    assert given["causal"] is True
    assert given["attention_chunk"] == 0
    assert given["cache_seqlens"].dtype is given["page_table"].dtype is given["cu_seqlens_q"].dtype is torch.int32
    assert given["max_seqlen_q"] == 3
    return attend(
        query,
        keys,
        values,
        starts=given["cu_seqlens_q"],
        lens=given["cache_seqlens"].tolist(),
        table=given["page_table"],
        scale=given["softmax_scale"],
        window=given["window_size"],
    )


def version_2(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **given: Any) -> torch.Tensor:
    assert given["causal"] is True
    assert given["cu_seqlens_k"].dtype is given["block_table"].dtype is given["cu_seqlens_q"].dtype is torch.int32
    assert (given["max_seqlen_q"], given["max_seqlen_k"]) == (3, 300)
    return attend(
        query,
        keys,
        values,
        starts=given["cu_seqlens_q"],
        lens=given["cu_seqlens_k"].diff().tolist(),
        table=given["block_table"],
        scale=given["softmax_scale"],
        window=given["window_size"],
    )


PACKAGES = {
    "flash_attn_interface": SimpleNamespace(flash_attn_with_kvcache=version_3),
    "flash_attn": SimpleNamespace(flash_attn_varlen_func=version_2),
}


def only(*names: str) -> Any:
    """Return an importer that finds these packages alone."""

    def find(name: str) -> Any:
        if name not in names:
            raise ImportError(f"No module named '{name}'")
        return PACKAGES[name]

    return find


@pytest.mark.parametrize("package", sorted(PACKAGES))
@pytest.mark.parametrize("window_tokens", [None, 5])
def test_each_package_gives_what_the_reference_gives(package: str, window_tokens: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    block_size = 256
    rows = [
        SyntheticRow(ids_n=torch.zeros(3, dtype=torch.int64), blocks=(2, 0), start=297),
        SyntheticRow(ids_n=torch.zeros(1, dtype=torch.int64), blocks=(1,), start=8),
    ]
    batch = synthetic_batch(rows, block_size=block_size, scratch_block=3)
    pools = [torch.randn(4, block_size, 2, 8, generator=generator).bfloat16() for _ in range(2)]
    query_THD = torch.randn(4, 6, 8, generator=generator).bfloat16()
    backend = load_flash(dtype=torch.bfloat16, block_size=block_size, package=only(package))
    rule = backend.accept(AttentionRule(scaling=0.3, window_tokens=window_tokens), SPEC)
    found = backend.prepare(batch, block_size=block_size).attend(query_THD, *pools, rule)
    expected = ReferenceAttention().prepare(batch, block_size=block_size).attend(query_THD, *pools, rule)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_version_3_is_taken_where_both_are_installed() -> None:
    load_flash(dtype=torch.float16, block_size=16, package=only(*PACKAGES))  # version 2 refuses blocks of 16 tokens


@pytest.mark.parametrize(
    ("packages", "dtype", "block_size", "message"),
    [
        ((), torch.bfloat16, 16, "needs the package flash_attn_interface or flash_attn, .*--attention-backend triton"),
        (("flash_attn",), torch.bfloat16, 16, "--block-size is 16: --block-size 256"),
        (tuple(PACKAGES), torch.float32, 16, "the model is in float32: --dtype bfloat16"),
    ],
)
def test_what_cannot_be_had_is_refused(
    packages: tuple[str, ...], dtype: torch.dtype, block_size: int, message: str
) -> None:
    with pytest.raises(BackendRefused, match=message):
        load_flash(dtype=dtype, block_size=block_size, package=only(*packages))


@pytest.mark.parametrize(
    ("rule", "spec", "message"),
    [
        (AttentionRule(scaling=1.0, sinks_H=torch.zeros(6)), SPEC, "does not compute sinks"),
        (AttentionRule(scaling=1.0, slopes_H=torch.zeros(6)), SPEC, "does not compute slopes"),
        (AttentionRule(scaling=1.0, chunk_tokens=8), SPEC, "does not compute chunks"),
        (AttentionRule(scaling=1.0, sees_spans=True), SPEC, "does not compute images whose tokens see each other"),
        (AttentionRule(scaling=1.0), LayerKvSpec(2, 192, 128), "keys and values of different width"),
        (AttentionRule(scaling=1.0), LayerKvSpec(2, 512, 512), "heads of more than 256 dims"),
        (AttentionRule(scaling=1.0), LayerKvSpec(2, 100, 100), "heads of 100 dims, no multiple of 8"),
    ],
)
def test_a_layer_that_the_package_cannot_compute_is_refused(
    rule: AttentionRule, spec: LayerKvSpec, message: str
) -> None:
    backend = load_flash(dtype=torch.bfloat16, block_size=256, package=only("flash_attn"))
    with pytest.raises(BackendRefused, match=message):
        backend.accept(rule, spec)


def test_version_3_knows_chunks() -> None:
    backend = load_flash(dtype=torch.bfloat16, block_size=16, package=only("flash_attn_interface"))
    rule = AttentionRule(scaling=1.0, chunk_tokens=8)
    assert backend.accept(rule, SPEC) is rule


class PlainCall:
    """Stands in for the call of a package, in numbers of 32 bits too."""

    takes_chunks = False

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(
        self, step: FlashStep, query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        self.num_calls += 1
        return attend(
            query_THD,
            keys,
            values,
            starts=step.query_starts,
            lens=step.context_lens_R.tolist(),
            table=step.block_tables_RB,
            scale=rule.scaling,
            window=(-1, -1),
        )


def test_layers_turns_and_scans_of_the_kernels_stay_beside_flash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load compares the model with transformers' code, so that it ends with an error where the parts do not fit."""
    call, kernels = PlainCall(), PlainKernels()
    writes: list[bool] = []

    def write(*given: Any, **named: Any) -> torch.Tensor:
        writes.append(named["tables"] is not None)
        return PlainKernels.write_kv(kernels, *given, **named)

    backend = FlashBesideKernels(FlashAttention(call).with_write(write), kernels)
    monkeypatch.setattr("textmill_shard.loader.model_loader.choose_attention", lambda *_, **__: backend)
    options = LoadOptions(model_dir=make_tiny_llama(tmp_path, layers=2), dtype="float32", block_size=4)
    runner = load_model(options, lambda phase, share: None)
    assert call.num_calls >= 2
    assert len(writes) == call.num_calls
    assert all(writes), "the write turns queries and keys"
    assert any(isinstance(module, DeviceRmsNorm) for module in runner.modules())
    assert runner.device_scans is kernels
    assert not runner.has_fixed_launches, "a graph of FlashAttention is not recorded"
