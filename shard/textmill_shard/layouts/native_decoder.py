"""A llama-type decoder as one native call per step, without Python and small parallel regions between the layers.

The decoder is chosen when a layout is built, by the shape of the model's modules and not by the model's name. The start
check compares its logits with the probe's, so that a model that looks alike and computes otherwise is left to
transformers' own code.
"""

# T tokens of the step, R sequences, N rows whose logits are wanted, V vocabulary, D width of the hidden states,
# n rows handed in, O outputs, I inputs of a linear layer

import ctypes
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from textmill_shard.attention.base import AttentionRule
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.heap import trim_heap
from textmill_shard.layers.parallel_layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabularyParallelEmbedding,
    VocabularyParallelHead,
)
from textmill_shard.layouts.native_adapters import LAYER_LINEARS, NativeAdapters
from textmill_shard.model.adapter import NO_ADAPTER, AdapterWeights, LinearPart, PreparedAdapter
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput, HostScan, MediaStep
from textmill_shard.model.kv_pool import KvPool
from textmill_shard.native.kernels import (
    DTYPES,
    Decoder,
    DecoderLayer,
    DecoderStep,
    Kernels,
    PackedWeight,
    address_of,
    pad_bias,
)

_DECODER_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_LINEARS = (nn.Linear, ColumnParallelLinear)


def why_not_native(model: Any, rules: Sequence[AttentionRule]) -> str | None:
    """Return the reason why a model does not have the shape of a llama-type decoder; None for a model of that shape."""
    path = _decoder_path(model)
    if path is None:
        return "the model is not embedding, layers, norm and head"
    decoder = model.get_submodule(path)
    if decoder.embed_tokens.weight.dtype not in DTYPES:
        return f"there are no kernels for {decoder.embed_tokens.weight.dtype}"
    if len(rules) != len(decoder.layers):
        return "layers without attention of their own"
    sizes: set[tuple[Any, ...]] = set()
    epsilons: set[float] = set()
    for layer in decoder.layers:
        if _parts(layer) != _LAYER_PARTS or _parts(layer.mlp) != _MLP_PARTS:
            return "a layer is not norm, attention, norm and gated MLP"
        attention, mlp = layer.self_attn, layer.mlp
        if _parts(attention) not in (_ATTENTION_PARTS, _ATTENTION_PARTS | _HEAD_NORMS):
            return "an attention layer has unknown parts"
        if not isinstance(mlp.act_fn, nn.SiLU) and type(mlp.act_fn).__name__ != "SiLUActivation":
            return "the activation is not SiLU"
        linears = [
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            *(getattr(attention, n) for n in sorted(_ATTENTION_PARTS)),
        ]
        shapes = [_local(linear).weight.shape for linear in linears if isinstance(_local(linear), _LINEARS)]
        if len(shapes) < len(linears) or any(num_inputs % 2 for _, num_inputs in shapes):
            return "a linear is not a plain one of even width"
        norms = [layer.input_layernorm, layer.post_attention_layernorm, decoder.norm]
        norms += [getattr(attention, name) for name in _HEAD_NORMS if hasattr(attention, name)]
        if any(not hasattr(norm, "variance_epsilon") for norm in norms):
            return "a norm is not a plain RMSNorm"
        epsilons.update(norm.variance_epsilon for norm in norms)
        if not _turns_halves(attention):
            return "the rotation of positions does not pair the two halves of a head"
        if hasattr(attention, "q_norm") and attention.q_norm.weight.shape[0] != attention.head_dim:
            return "a query norm does not go over one head"
        divided = isinstance(attention.o_proj, RowParallelLinear), isinstance(mlp.down_proj, RowParallelLinear)
        sizes.add((attention.head_dim, *divided, *shapes))
        if len(set(divided)) != 1:
            return "the ranks share only some of the layers"
    # The native step has one set of sizes for all layers: it would read and write beyond the smaller ones.
    if len(sizes) != 1:
        return "layers are not of one size"
    # The native step has one epsilon for all norms. `NativeDecoder` empties weights, so the check comes before.
    return None if len(epsilons) == 1 else "norms have different epsilons"


def _decoder_path(model: Any) -> str | None:
    """Return where the decoder stands in the model, beside a head alone or in a model with a tower for images."""
    if _parts(model) != {"model", "lm_head"}:
        return None
    inner = ("", *(f".{name}" for name in _parts(model.model)))
    paths = [f"model{name}" for name in inner if _parts(model.get_submodule(f"model{name}")) == _DECODER_PARTS]
    return paths[0] if len(paths) == 1 else None


def _rotary_axes(rotary: Any, num_frequencies: int) -> torch.Tensor:
    """Return uint8 `[num_frequencies]`: which of three positions turns a frequency, found by one-hot positions."""
    positions_3_1_3 = torch.eye(3, dtype=torch.int64).unsqueeze(1)
    sines_13P: torch.Tensor = rotary(torch.zeros(1, 3, 1), positions_3_1_3)[1]
    return (sines_13P[0, :, :num_frequencies] != 0).to(torch.uint8).argmax(dim=0).to(torch.uint8)


def _turns_halves(attention: nn.Module) -> bool:
    """Ask the modelling code's own helper how it pairs dimensions."""
    rotate = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
    return rotate is not None and rotate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-3.0, -4.0, 1.0, 2.0]


def _local(layer: Any) -> Any:
    """Return the layer that holds this rank's part of the weight. A subclass of a linear layer is left out by None."""
    if isinstance(layer, RowParallelLinear | VocabularyParallelHead):
        return layer.local
    return None if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear else layer


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


class NativeDecoder:
    """Holds the packed weights, takes flat batches, gives what the model runner gives. One thread calls it."""

    has_own_threads = True

    def __init__(
        self,
        model: Any,
        rules: Sequence[AttentionRule],
        kernels: Kernels,
        parallel: TensorParallel,
        *,
        has_rope_positions: bool = False,
    ) -> None:
        """Pack the weights of a model that fits (`why_not_native`); its own are emptied one by one.

        Ranks share memory (`parallel.room`). `has_rope_positions`: steps may have three rotary positions per token.
        """
        path = _decoder_path(model)
        assert path is not None, "why_not_native comes before"
        self._layers_path = f"{path}.layers"
        decoder = model.get_submodule(path)
        first = decoder.layers[0].self_attn
        self._kernels = kernels
        self._parallel = parallel
        self._held: list[torch.Tensor] = []  # what the structures point to
        self._pool: KvPool | None = None
        self.dtype: torch.dtype = decoder.embed_tokens.weight.dtype
        head_layer, table = _local(model.lm_head), decoder.embed_tokens
        # Ids of each rank, where ranks share the head. The logits are then those of this rank's ids alone.
        self.vocabulary_sizes: tuple[int, ...] | None = None
        if isinstance(model.lm_head, VocabularyParallelHead):
            self.vocabulary_sizes = model.lm_head.sizes
        self._num_local_ids: int = head_layer.weight.shape[0]
        self.hidden_size: int = table.weight.shape[1]
        head_dim: int = first.head_dim
        kv_heads = _local(first.k_proj).weight.shape[0] // head_dim
        room = parallel.room if isinstance(first.o_proj, RowParallelLinear) else None
        first_id = table.indices.start if isinstance(table, VocabularyParallelEmbedding) else 0
        num_embedded: int = table.weight.shape[0]
        frequencies = decoder.rotary_emb.inv_freq
        axes = torch.zeros(len(frequencies), dtype=torch.uint8)
        if has_rope_positions:
            axes = _rotary_axes(decoder.rotary_emb, len(frequencies))

        self._adapters = NativeAdapters(
            num_layers=len(decoder.layers),
            outputs_of_layer={
                path: _local(decoder.layers[0].get_submodule(path)).out_features for path in LAYER_LINEARS
            },
            vocab_size=self._num_local_ids,
            layers_path=self._layers_path,
            allocate=kernels.allocate,
        )
        self._layers = (DecoderLayer * len(decoder.layers))()
        self._norm_epsilon = float(decoder.norm.variance_epsilon)
        for fields, layer, rule in zip(self._layers, decoder.layers, rules, strict=True):
            self._fill_layer(fields, layer, rule)
            trim_heap()  # a layer's originals go before the next one is packed
        is_tied = head_layer.weight.data_ptr() == table.weight.data_ptr()
        head = self._pack(head_layer.weight)
        embedding = None if is_tied else self._hold(table.weight.detach())
        _empty(head_layer.weight)
        _empty(table.weight)
        self._head = head
        self._head_bias = self._hold_bias([head_layer])
        self._decoder = Decoder(
            num_layers=len(decoder.layers),
            hidden=self.hidden_size,
            heads=_local(first.q_proj).out_features // head_dim,
            kv_heads=kv_heads,
            head_dim=head_dim,
            mlp=_local(decoder.layers[0].mlp.down_proj).in_features,
            vocabulary=self._num_local_ids,
            rotary_dim=2 * frequencies.shape[0],
            is_bf16=self.dtype == torch.bfloat16,
            layers=ctypes.addressof(self._layers),
            head=head.address,
            head_bias=address_of(self._head_bias),
            embedding=address_of(embedding),
            last_norm=address_of(self._hold(decoder.norm.weight.detach().float())),
            inverse_frequencies=address_of(self._hold(frequencies.detach().float())),
            axes=address_of(self._hold(axes)),
            norm_epsilon=self._norm_epsilon,
            rope_factor=float(decoder.rotary_emb.attention_scaling),
            first_id=first_id,
            num_embedded=num_embedded,
            adds_embeddings=isinstance(table, VocabularyParallelEmbedding),
            room=None if room is None else room.address,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights held."""
        return sum(tensor.nbytes for tensor in self._held)

    def linears_of(self, linears: Mapping[str, LinearPart]) -> Mapping[str, LinearPart]:
        """Return those of a model's linear layers that the native step computes."""
        known = (f"{self._layers_path}.", "lm_head")
        return {path: part for path, part in linears.items() if path.startswith(known)}

    def bind(self, pool: KvPool | None) -> None:
        """Read and write these K and V tensors from now on; None: forget the last ones."""
        self._pool = pool
        if pool is None:
            return
        for fields, keys, values in zip(self._layers, pool.keys, pool.values, strict=True):
            assert keys.is_contiguous()
            assert values.is_contiguous()
            assert keys.dtype == self.dtype
            fields.keys, fields.values = keys.data_ptr(), values.data_ptr()
            self._kernels.want_huge_pages(keys)
            self._kernels.want_huge_pages(values)
        self._decoder.block_size = pool.block_size

    def forward(
        self, batch: ForwardBatch, wants_hidden: bool = False, *, part_ns: torch.Tensor | None = None
    ) -> ForwardOutput:
        """Compute all tokens of the batch and write their K and V; needs a bound pool.

        `part_ns` int64 `[layers * LAYER_PARTS + PARTS_AROUND]` gets the nanoseconds of each part (for profiles).
        """
        assert self._pool is not None, "bind comes before forward"
        num_tokens, num_rows = batch.input_ids_T.shape[0], batch.logit_rows_N.shape[0]
        rows = _Rows(num_rows, self._num_local_ids)
        logits, best, best_score, log_mass, not_finite = rows.addresses
        hidden_TD = torch.empty(num_tokens, self.hidden_size, dtype=self.dtype) if wants_hidden else None
        block_tables_RB = batch.block_tables_RB.contiguous()
        adapters = None if batch.adapters_R is None else self._adapters.of_step(batch)
        media = None if batch.media is None else _StepMedia(batch.media, num_tokens, self.dtype)
        rope_positions_3T = None if batch.rope_positions_3T is None else batch.rope_positions_3T.contiguous()
        step = DecoderStep(
            num_tokens=num_tokens,
            num_sequences=block_tables_RB.shape[0],
            num_rows=num_rows,
            table_stride=block_tables_RB.shape[1],
            input_ids=batch.input_ids_T.data_ptr(),
            positions=batch.position_ids_T.data_ptr(),
            kv_places=batch.kv_places_T.data_ptr(),
            logit_rows=batch.logit_rows_N.data_ptr(),
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens_R.data_ptr(),
            block_tables=block_tables_RB.data_ptr(),
            logits=logits,
            hidden=address_of(hidden_TD),
            best=best,
            best_score=best_score,
            not_finite=not_finite,
            log_mass=log_mass,
            rope_positions=address_of(rope_positions_3T),
            span_ends=address_of(batch.span_ends_T),
            part_ns=address_of(part_ns),
        )
        if media is not None:
            media.fill(step)
        if adapters is not None:
            adapters.fill(step)
        self._kernels.decode(self._decoder, step)
        if self._parallel.room is not None:
            self._parallel.room.check()
        return ForwardOutput(logits_NV=rows.logits(), hidden_TD=hidden_TD, scan=rows.scan())

    def project(self, hidden_nD: torch.Tensor, adapter: int = NO_ADAPTER) -> torch.Tensor:
        """Return float32 logits `[n, V]` of rows of `hidden_TD`, which all have the adapter of this place."""
        logits_nV = self._kernels.linear(hidden_nD, self._head, self._head_bias)
        product = None if adapter == NO_ADAPTER else self._adapters.head_of(adapter)
        if product is not None:
            rows_n = torch.zeros(hidden_nD.shape[0], dtype=torch.int32)
            self._kernels.add_low_rank(logits_nV, hidden_nD, [product], rows_n)
        return logits_nV

    def prepare(self, weights: AdapterWeights) -> PreparedAdapter:
        """Pack an adapter. A thread beside the step loop may call this."""
        return self._adapters.prepare(weights)

    address_version = 0  # no graph is recorded of a native step

    def hold_any(self, max_rank: int) -> bool:
        """The host must know the adapters of a batch."""
        return False

    def put(self, place: int, adapter: PreparedAdapter) -> None:
        """Let steps find the adapter under this place."""
        self._adapters.put(place, adapter)

    def remove(self, place: int) -> None:
        """Free a place."""
        self._adapters.remove(place)

    def _fill_layer(self, fields: DecoderLayer, layer: Any, rule: AttentionRule) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_proj, mlp.up_proj]
        fields.qkv = self._pack_joined(qkv)
        fields.attention_out = self._pack_joined([attention.o_proj])
        fields.gate_up = self._pack_joined(gate_up, is_gate_up=True)
        fields.down = self._pack_joined([mlp.down_proj])
        fields.qkv_bias = address_of(self._hold_bias(qkv))
        fields.attention_out_bias = address_of(self._hold_sum_bias(attention.o_proj))
        fields.gate_up_bias = address_of(self._hold_bias(gate_up, is_gate_up=True))
        fields.down_bias = address_of(self._hold_sum_bias(mlp.down_proj))
        fields.attention_norm = address_of(self._hold_norm(layer.input_layernorm))
        fields.mlp_norm = address_of(self._hold_norm(layer.post_attention_layernorm))
        if hasattr(attention, "q_norm"):
            fields.query_norm = address_of(self._hold_norm(attention.q_norm))
            fields.key_norm = address_of(self._hold_norm(attention.k_norm))
        fields.sinks = address_of(None if rule.sinks_H is None else self._hold(rule.sinks_H.detach().float()))
        fields.window = rule.window_tokens or 0
        fields.chunk = rule.chunk_tokens or 0
        fields.sees_spans = rule.sees_spans
        fields.has_rope = bool(getattr(attention, "use_rope", True))
        fields.scaling = rule.scaling
        fields.softcap = rule.softcap or 0.0

    def _pack_joined(self, linears: Sequence[nn.Linear], *, is_gate_up: bool = False) -> int:
        weights = [_local(linear).weight for linear in linears]
        weight_OI = torch.cat([weight.detach() for weight in weights])
        for weight in weights:
            _empty(weight)
        return self._pack(weight_OI, is_gate_up=is_gate_up).address

    def _pack(self, weight_OI: torch.Tensor, *, is_gate_up: bool = False) -> PackedWeight:
        packed = self._kernels.pack(weight_OI.detach(), is_gate_up=is_gate_up)
        self._hold(packed.panels)
        return packed

    def _hold(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        self._held.append(tensor)
        return tensor

    def _hold_norm(self, norm: Any) -> torch.Tensor:
        assert float(norm.variance_epsilon) == self._norm_epsilon, "norms with different epsilon"
        return self._hold(norm.weight.detach().float())

    def _hold_sum_bias(self, linear: Any) -> torch.Tensor | None:
        """Hold the bias of a layer whose outputs ranks may add up, of which then only the layer of rank 0 has one."""
        bias_O = _local(linear).bias
        return None if bias_O is None else self._hold(pad_bias(bias_O.detach()))

    def _hold_bias(self, linears: Sequence[nn.Linear], *, is_gate_up: bool = False) -> torch.Tensor | None:
        if all(linear.bias is None for linear in linears):
            return None
        biases = [
            torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
            for linear in linears
        ]
        if is_gate_up:  # as the outputs: 16 of the gate, 16 of the other, in turn
            width = -(-biases[0].shape[0] // 16) * 16
            halves = [torch.nn.functional.pad(bias, (0, width - bias.shape[0])).view(-1, 16) for bias in biases]
            return self._hold(torch.cat(halves, dim=1).flatten())
        return self._hold(pad_bias(torch.cat(biases)))


def _empty(parameter: torch.Tensor) -> None:
    """Give its memory back; the packed form is the only one from now on."""
    parameter.data = torch.empty(0, dtype=parameter.dtype)


class _StepMedia:
    """The rows of images of one step, as the step reads them. The object must be kept alive during the call."""

    def __init__(self, media: MediaStep, num_tokens: int, dtype: torch.dtype) -> None:
        self._row_of_token_T = torch.full((num_tokens,), -1, dtype=torch.int32)
        self._row_of_token_T[media.places_m] = torch.arange(len(media.places_m), dtype=torch.int32)
        self._rows_mD = media.rows_mD.to(dtype).contiguous()
        deepstack = media.deepstack_kmD
        self._deepstack_kmD = None if deepstack is None else deepstack.to(dtype).contiguous()

    def fill(self, step: DecoderStep) -> None:
        step.num_media = len(self._rows_mD)
        step.num_deepstack = 0 if self._deepstack_kmD is None else len(self._deepstack_kmD)
        step.media_of_token = address_of(self._row_of_token_T)
        step.media_rows = address_of(self._rows_mD)
        step.deepstack = address_of(self._deepstack_kmD)


class _Rows:
    """Memory for the facts of a step's rows, in one piece. Its first content is undefined."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        # numpy's: a call of torch would give the GIL away, and the writer of the last result would hold up the step.
        self._shape = (num_rows, vocab_size)
        logit_bytes = -(-4 * num_rows * vocab_size // 8) * 8  # so that ids stand at multiples of 8
        per_id, per_float = 8 * num_rows, 4 * num_rows
        whole = np.empty(logit_bytes + per_id + 2 * per_float + num_rows + 64, dtype=np.uint8)
        address: int = whole.ctypes.data
        start = -address % 64
        self._whole = whole
        self._ends = tuple(accumulate((start, logit_bytes, per_id, per_float, per_float, num_rows)))
        # Of logits, best ids, their scores, normalisers, marks of rows that are not finite.
        self.addresses = tuple(address + end for end in self._ends[:-1])

    def logits(self) -> torch.Tensor:
        """`[num_rows, V]` float32."""
        num_rows, vocab_size = self._shape
        flat = self._part(0).view(np.float32)[: num_rows * vocab_size]
        return torch.from_numpy(flat.reshape(num_rows, vocab_size))

    def scan(self) -> HostScan:
        return HostScan(
            best_N=self._part(1).view(np.int64),
            best_scores_N=self._part(2).view(np.float32),
            log_mass_N=self._part(3).view(np.float32),
            not_finite_N=self._part(4).view(np.bool_),
        )

    def _part(self, number: int) -> npt.NDArray[np.uint8]:
        return self._whole[self._ends[number] : self._ends[number + 1]]
