"""The native kernels as Python calls: packing, linears, paged attention, whole decoder steps, scans of scores."""

# T tokens, R sequences, O outputs, I inner width, H query heads, K key/value heads, D key width, E value width,
# N rows of scores, V vocabulary

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textmill_shard.native.build import FLAGS, load_library
from textmill_shard.native.low_rank import LowRankProduct, product_pointers
from textmill_shard.native.ranks import RankRoom

PANEL_OUTPUTS = 32  # number of outputs that stand side by side in the packed layout
DTYPES = (torch.bfloat16, torch.float32)
_HUGE_PAGE_BYTES = 2 << 20

_I64, _I32, _F32, _PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p


def _fields(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class AttentionArguments(ctypes.Structure):
    """`attention` of attention.h."""

    _fields_ = (
        *_fields(_PTR, "query"),
        *_fields(_I64, "query_token_stride", "query_head_stride"),
        *_fields(_PTR, "keys", "values", "out"),
        *_fields(_I64, "out_token_stride", "out_head_stride"),
        *_fields(_I64, "heads", "kv_heads", "key_dim", "value_dim", "block_size"),
        *_fields(_PTR, "block_tables", "query_starts", "context_lens"),
        *_fields(_I64, "table_stride", "num_sequences"),
        *_fields(_F32, "scaling", "softcap"),
        *_fields(_I64, "window", "chunk"),
        *_fields(_PTR, "sinks", "span_ends"),
    )


class DecoderLayer(ctypes.Structure):
    """`decoder_layer` of decoder.h."""

    _fields_ = (
        *_fields(_PTR, "qkv", "attention_out", "gate_up", "down"),
        *_fields(_PTR, "qkv_bias", "attention_out_bias", "gate_up_bias", "down_bias"),
        *_fields(_PTR, "attention_norm", "mlp_norm", "query_norm", "key_norm", "sinks"),
        *_fields(_PTR, "keys", "values"),
        *_fields(_I64, "window", "chunk", "has_rope", "sees_spans"),
        *_fields(_F32, "scaling", "softcap"),
    )


class Decoder(ctypes.Structure):
    """`decoder` of decoder.h."""

    _fields_ = (
        *_fields(_I64, "num_layers", "hidden", "heads", "kv_heads", "head_dim", "mlp", "vocabulary"),
        *_fields(_I64, "rotary_dim", "block_size", "is_bf16"),
        *_fields(_PTR, "layers", "head", "head_bias", "embedding", "last_norm", "inverse_frequencies", "axes"),
        *_fields(_F32, "norm_epsilon", "rope_factor"),
        *_fields(_I64, "first_id", "num_embedded", "adds_embeddings"),
        *_fields(_PTR, "room"),
    )


class DecoderStep(ctypes.Structure):
    """`decoder_step` of decoder.h."""

    _fields_ = (
        *_fields(_I64, "num_tokens", "num_sequences", "num_rows", "table_stride"),
        *_fields(_PTR, "input_ids", "positions", "kv_places", "logit_rows"),
        *_fields(_PTR, "query_starts", "context_lens", "block_tables", "logits", "hidden"),
        *_fields(_PTR, "best", "not_finite", "log_mass", "best_score"),
        *_fields(_I64, "num_adapters", "most_ranks"),
        *_fields(_PTR, "adapters", "adapter_of_token"),
        *_fields(_PTR, "rope_positions", "span_ends"),
        *_fields(_I64, "num_media", "num_deepstack"),
        *_fields(_PTR, "media_of_token", "media_rows", "deepstack"),
        *_fields(_PTR, "part_ns"),
    )


# The parts of a step that `DecoderStep.part_ns` times, in the order of decoder.h: in each layer, and around the layers.
LAYER_PARTS = ("attention_norm", "qkv", "place", "attend", "attention_out", "mlp_norm", "gate_up", "down")
PARTS_AROUND = ("embed", "last_norm", "head")


class PackedWeight:
    """A weight `[O, I]` in panels of 32 outputs. The last panel is filled up with zeros."""

    def __init__(self, panels: torch.Tensor, *, num_outputs: int, inner: int, dtype: torch.dtype) -> None:
        self.panels = panels  # bytes, aligned to 64
        self.num_outputs = num_outputs
        self.inner = inner
        self.dtype = dtype

    @property
    def num_bytes(self) -> int:
        return self.panels.nbytes

    @property
    def address(self) -> int:
        return self.panels.data_ptr()


class Kernels:
    """The library with a team of threads. Only one thread at a time may call the kernels."""

    def __init__(self, library: ctypes.CDLL, *, num_threads: int) -> None:
        self._library = library
        library.textmill_features.restype = ctypes.c_char_p
        library.textmill_team_new.restype = _PTR
        library.textmill_team_new.argtypes = [_I32]
        library.textmill_team_free.argtypes = [_PTR]
        library.textmill_want_huge_pages.argtypes = [_PTR, _I64]
        library.textmill_pack.argtypes = [_PTR, _PTR, _I64, _I64, _I64, _I64, _PTR]
        library.textmill_linear.argtypes = [_PTR, _PTR, _I64, _I64, _PTR, _I64, _PTR, _I64, _I64, _PTR]
        library.textmill_linear_sum.argtypes = [_PTR, _PTR, _PTR, _I64, _I64, _PTR, _I64, _PTR, _I64, _PTR]
        library.textmill_rms_norm.argtypes = [_PTR, _PTR, _I64, _I64, _PTR, _F32, _I64, _PTR]
        library.textmill_attention.argtypes = [_PTR, _PTR, _I64, _I64]
        library.textmill_decode.argtypes = [_PTR, _PTR, _PTR]
        library.textmill_low_rank.argtypes = [*(_PTR, _PTR, _I64, _I64, _PTR, _I64, _PTR, _I64, _I64, _PTR, _I64, _I64)]
        library.textmill_scan_rows.argtypes = [_PTR, _PTR, _I64, _I64, _I64, _PTR, _PTR, _PTR]
        self.features: str = library.textmill_features().decode()
        self.num_threads = num_threads
        self._team = library.textmill_team_new(num_threads)
        if not self._team:
            raise MemoryError(f"cannot start {num_threads} threads for the native kernels")

    def close(self) -> None:
        """End the threads. A second call changes nothing."""
        if self._team:
            self._library.textmill_team_free(self._team)
            self._team = None

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return memory that is aligned to 64 bytes and not yet written, on large pages if the system grants them."""
        whole = torch.empty(num_bytes + _HUGE_PAGE_BYTES, dtype=torch.uint8)
        skipped = -whole.data_ptr() % (_HUGE_PAGE_BYTES if num_bytes >= _HUGE_PAGE_BYTES else 64)
        memory = whole[skipped : skipped + num_bytes]
        self.want_huge_pages(memory)
        return memory

    def want_huge_pages(self, tensor: torch.Tensor) -> None:
        """Ask the system for large pages under a tensor that is not yet written. The system may refuse."""
        self._library.textmill_want_huge_pages(tensor.data_ptr(), tensor.nbytes)

    def packed_bytes(self, weight_OI: torch.Tensor, *, is_gate_up: bool = False) -> int:
        """Return the bytes of the packed form. With `is_gate_up` O counts both halves."""
        num_outputs, inner = weight_OI.shape
        if is_gate_up:
            return -(-num_outputs // 2 // 16) * PANEL_OUTPUTS * inner * weight_OI.dtype.itemsize
        return -(-num_outputs // PANEL_OUTPUTS) * PANEL_OUTPUTS * inner * weight_OI.dtype.itemsize

    def pack(
        self, weight_OI: torch.Tensor, *, is_gate_up: bool = False, into: torch.Tensor | None = None
    ) -> PackedWeight:
        """Pack a bfloat16 or float32 weight.

        With `is_gate_up` the first half of O is the gate, and the rows of both halves interleave.
        """
        num_outputs, inner = weight_OI.shape
        weight_OI = weight_OI.contiguous()
        if into is None:
            into = self.allocate(self.packed_bytes(weight_OI, is_gate_up=is_gate_up))
        is_bf16 = _is_bf16(weight_OI)
        self._library.textmill_pack(
            self._team, weight_OI.data_ptr(), num_outputs, inner, is_gate_up, is_bf16, into.data_ptr()
        )
        return PackedWeight(into, num_outputs=num_outputs, inner=inner, dtype=weight_OI.dtype)

    def linear(
        self, x_TI: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, *, is_narrow: bool = False
    ) -> torch.Tensor:
        """Return `[T, O]` in float32, or with `is_narrow` in the dtype of x. `bias` comes from `pad_bias`."""
        x_TI = x_TI.contiguous()
        assert x_TI.shape[1] == weight.inner, (x_TI.shape, weight.inner)
        assert x_TI.dtype == weight.dtype, (x_TI.dtype, weight.dtype)
        out_TO = torch.empty(x_TI.shape[0], weight.num_outputs, dtype=x_TI.dtype if is_narrow else torch.float32)
        self._library.textmill_linear(
            self._team,
            x_TI.data_ptr(),
            x_TI.shape[0],
            weight.inner,
            weight.address,
            weight.num_outputs,
            None if bias is None else bias.data_ptr(),
            _is_bf16(x_TI),
            is_narrow,
            out_TO.data_ptr(),
        )
        return out_TO

    def linear_sum(
        self, x_TI: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, room: RankRoom
    ) -> torch.Tensor:
        """Return `[T, O]` in the dtype of x: the sum over the ranks of the room of each rank's product.

        Each product is rounded to the dtype, then added up as by `RankRoom.add`. All ranks call this with equally many
        rows. A rank whose `bias` is not None adds it to its product. Raises RankLost.
        """
        x_TI = x_TI.contiguous()
        assert x_TI.shape[1] == weight.inner, (x_TI.shape, weight.inner)
        assert x_TI.dtype == weight.dtype, (x_TI.dtype, weight.dtype)
        out_TO = torch.empty(x_TI.shape[0], weight.num_outputs, dtype=x_TI.dtype)
        failure = self._library.textmill_linear_sum(
            self._team,
            room.address,
            x_TI.data_ptr(),
            x_TI.shape[0],
            weight.inner,
            weight.address,
            weight.num_outputs,
            None if bias is None else bias.data_ptr(),
            _is_bf16(x_TI),
            out_TO.data_ptr(),
        )
        if failure:
            room.check()
        return out_TO

    def add_low_rank(
        self,
        out_TO: torch.Tensor,
        x_TI: torch.Tensor,
        products: Sequence[LowRankProduct],
        adapter_of_row_T: torch.Tensor,
    ) -> None:
        """Add the products of adapters to rows that a linear layer has computed, in place.

        `adapter_of_row_T` int32 has for each row an index into `products`, or -1. `out_TO` is float32 or of the dtype
        of x, and its rows may stand apart. The matrices must be kept alive during the call.
        """
        assert out_TO.stride(1) == 1, out_TO.stride()
        x_TI = x_TI.contiguous()
        num_rows, inner = x_TI.shape
        pointers = product_pointers(products)
        failed = self._library.textmill_low_rank(
            self._team,
            x_TI.data_ptr(),
            num_rows,
            inner,
            pointers,
            len(products),
            adapter_of_row_T.data_ptr(),
            _is_bf16(x_TI),
            out_TO.dtype == x_TI.dtype,
            out_TO.data_ptr(),
            out_TO.stride(0),
            out_TO.shape[1],
        )
        if failed:
            raise MemoryError(f"no memory for the adapters of {num_rows} rows")

    def rms_norm(self, x_TI: torch.Tensor, weight_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return `[T, I]` in the dtype of x, rounded once. The weight is float32."""
        x_TI = x_TI.contiguous()
        assert weight_I.dtype == torch.float32, weight_I.dtype
        assert x_TI.shape[1] == weight_I.shape[0], (x_TI.shape, weight_I.shape)
        out_TI = torch.empty_like(x_TI)
        self._library.textmill_rms_norm(
            self._team,
            x_TI.data_ptr(),
            x_TI.shape[0],
            x_TI.shape[1],
            weight_I.data_ptr(),
            epsilon,
            _is_bf16(x_TI),
            out_TI.data_ptr(),
        )
        return out_TI

    def attention(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        *,
        block_tables_RB: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens_R: torch.Tensor,
        scaling: float,
        window_tokens: int | None = None,
        chunk_tokens: int | None = None,
        softcap: float | None = None,
        sinks_H: torch.Tensor | None = None,
        span_ends_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return `[T, H, E]` in the query's dtype. Tables, starts, lengths, ends are int32, and sinks are float32."""
        if query_THD.stride(2) != 1:
            query_THD = query_THD.contiguous()
        num_tokens, num_heads, key_dim = query_THD.shape
        value_dim = value_pool.shape[3]
        out_THE = query_THD.new_zeros(num_tokens, num_heads, value_dim)
        arguments = AttentionArguments(
            query=query_THD.data_ptr(),
            query_token_stride=query_THD.stride(0),
            query_head_stride=query_THD.stride(1),
            keys=key_pool.data_ptr(),
            values=value_pool.data_ptr(),
            out=out_THE.data_ptr(),
            out_token_stride=out_THE.stride(0),
            out_head_stride=out_THE.stride(1),
            heads=num_heads,
            kv_heads=key_pool.shape[2],
            key_dim=key_dim,
            value_dim=value_dim,
            block_size=key_pool.shape[1],
            block_tables=block_tables_RB.data_ptr(),
            query_starts=query_starts.data_ptr(),
            context_lens=context_lens_R.data_ptr(),
            table_stride=block_tables_RB.stride(0),
            num_sequences=block_tables_RB.shape[0],
            scaling=scaling,
            softcap=softcap or 0.0,
            window=window_tokens or 0,
            chunk=chunk_tokens or 0,
            sinks=None if sinks_H is None else sinks_H.data_ptr(),
            span_ends=address_of(span_ends_T),
        )
        is_bf16 = _is_bf16(query_THD)
        if self._library.textmill_attention(self._team, ctypes.byref(arguments), num_tokens, is_bf16):
            raise MemoryError(f"no memory for the attention of {num_tokens} tokens")
        return out_THE

    def decode(self, decoder: Decoder, step: DecoderStep) -> None:
        """Run a whole step. The pointers in both structures must stay valid during the call.

        After a step with a room the caller asks the room whether an exchange with another rank failed.
        """
        if self._library.textmill_decode(self._team, ctypes.byref(decoder), ctypes.byref(step)) == -1:
            raise MemoryError(f"no memory for a step of {step.num_tokens} tokens")

    def scan_rows(
        self, scores_NV: torch.Tensor, *, wants_mass: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return of float32 rows the first best id `[N]`, whether a row is not finite, bool `[N]`, and logsumexp `[N]`.

        The last is None unless `wants_mass`.
        """
        assert scores_NV.dtype == torch.float32, scores_NV.dtype
        if scores_NV.stride(1) != 1:
            scores_NV = scores_NV.contiguous()
        num_rows, width = scores_NV.shape
        best_N = torch.empty(num_rows, dtype=torch.int64)
        not_finite_N = torch.empty(num_rows, dtype=torch.bool)
        log_mass_N = torch.empty(num_rows) if wants_mass else None
        self._library.textmill_scan_rows(
            self._team,
            scores_NV.data_ptr(),
            num_rows,
            width,
            scores_NV.stride(0),
            best_N.data_ptr(),
            not_finite_N.data_ptr(),
            address_of(log_mass_N),
        )
        return best_N, not_finite_N, log_mass_N


def load_kernels(cache_folder: Path, *, num_threads: int, flags: Sequence[str] = FLAGS) -> Kernels | None:
    """Return the kernels, or None where they cannot be built, which a log line then explains."""
    library = load_library(cache_folder, flags=tuple(flags))
    return None if library is None else Kernels(library, num_threads=num_threads)


def pad_bias(bias_O: torch.Tensor) -> torch.Tensor:
    """Return the bias as float32, with zeros up to whole panels."""
    num_outputs = bias_O.shape[0]
    padded = torch.zeros(-(-num_outputs // PANEL_OUTPUTS) * PANEL_OUTPUTS)
    padded[:num_outputs] = bias_O.float()
    return padded


def _is_bf16(tensor: torch.Tensor) -> bool:
    assert tensor.dtype in DTYPES, tensor.dtype
    return tensor.dtype == torch.bfloat16


def address_of(tensor: torch.Tensor | None) -> Any:
    """Return a pointer for a field of the structures above."""
    return None if tensor is None else tensor.data_ptr()
