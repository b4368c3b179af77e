"""Runs the model of one rank on flat batches over the paged KV pool."""

# T tokens of the step, N rows whose logits are wanted, V vocabulary, D width of the hidden states, n rows handed in

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.adapter import NO_ADAPTER, AdapterHost, AdapterTargets, random_adapter
from textmill_shard.model.decode_graphs import DecodeGraphs, GraphSizes, RowUnpacker, SeatedStep
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.graph_check import GraphCheck
from textmill_shard.model.graph_recorder import GraphRecorder
from textmill_shard.model.graph_recording import Check, GraphRecording, Together
from textmill_shard.model.kv_pool import UNBOUNDED_TOKENS, KvPool, LayerKvSpec, kv_bytes_per_block
from textmill_shard.model.kv_scales import KV_TYPES, KvScales
from textmill_shard.model.media import MediaFacts, MediaRows, MediaTower, RopePositions, TokenSpan
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.kernels import Kernels

log = logging.getLogger(__name__)

TRIAL_PLACE = 100  # of the adapter with which graphs of steps with adapters are compared; no other has this place yet
TRIAL_RANK = 16


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the loaded model. All but `weight_bytes` and `kv_specs` are equal on every rank."""

    model_type: str  # `model_type` of config.json
    dtype: str  # "float32", "bfloat16", "float16"
    device: str  # "cpu", "cuda"
    vocab_size: int  # the logits are of the ids 0 .. vocab_size - 1
    eos_token_ids: tuple[int, ...]
    max_model_tokens: int  # longest sequence that the positions (of the decoder) allow, 0 = unbounded
    weight_bytes: int  # bytes of parameters and buffers that this rank holds
    tokenizer_digest: str  # hex blake2b-16 of tokenizer.json, "" without one
    block_size: int  # tokens per block
    kv_specs: tuple[LayerKvSpec, ...]  # one per attention layer of this rank
    can_project: bool  # whether hidden states alone can become logits, as prompt logprobs need
    layout: str = "flat"
    state_bytes: int = 0  # bytes of the rows that layers other than attention keep per slot
    rope_border: int | None = None  # requests of more tokens take the long rotary table; None = the model has one table
    decoder_prompt_ids: tuple[int, ...] = ()  # ids that the decoder begins with; empty = the model has no encoder
    max_encoder_tokens: int = 0  # longest text that the positions of the encoder allow, 0 = unbounded


class StepDecoder(Protocol):
    """Computes a step, by transformers' code (`layouts/flat_decoder.py`) or natively (`layouts/native_decoder.py`)."""

    has_own_threads: bool  # whether steps run in threads other than torch's

    def bind(self, pool: KvPool | None) -> None:
        """Read and write the tensors of this pool from now on. None lets go of the pool before."""
        ...

    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        """Compute a step, in torch's inference mode where torch computes."""
        ...

    def project(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor: ...


class StateStore(Protocol):
    """The rows of layers that carry state from token to token (`layouts/state_rows.py`)."""

    def copy(self, sources_n: torch.Tensor, targets_n: torch.Tensor, *, num_rows: int) -> None: ...


class RowScans(Protocol):
    """Kernels that read rows of scores on a GPU (`triton_kernels/interface.py`)."""

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass: ...

    def gumbel(self, seed_words_S2: torch.Tensor, positions_S: torch.Tensor, ids_SC: torch.Tensor) -> torch.Tensor: ...


class RowKernels(RowScans, RowUnpacker, Protocol):
    """Kernels around the layers of a step on a GPU."""


class ModelRunner:
    """Owns the weights and the KV pool of this rank. One thread calls the runner.

    With more than one rank, `forward` and `project` are called on every rank with equal arguments.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        decoder: StepDecoder,
        facts: ModelFacts,
        parallel: TensorParallel,
        targets: AdapterTargets,
        adapters: AdapterHost,
        kernels: Kernels | None = None,
        device_scans: RowKernels | None = None,
        has_fixed_attention: bool = True,
        media: MediaFacts | None = None,
        tower: MediaTower | None = None,
        vocabulary: SharedVocabulary | None = None,
        states: StateStore | None = None,
    ) -> None:
        """`vocabulary` is None where this rank has the whole vocabulary.

        `has_fixed_attention`: the launches of attention depend on the number of rows alone.
        """
        self.kernels = kernels  # native kernels, for the thread that runs the steps; None = plain torch
        self.device_scans = device_scans  # None = plain torch scans the scores
        self._has_fixed_attention = has_fixed_attention
        self.facts = facts
        self.media = media  # None: the model takes no images
        self._tower = tower
        self._states = states
        self.targets = targets  # of adapters
        self.adapters = adapters
        self.parallel = parallel
        self.dtype: torch.dtype = getattr(torch, facts.dtype)
        self.device = torch.device(facts.device)
        if self.device.type == "cuda":  # with its number, because threads may have other current devices
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._model = model
        self._decoder = decoder
        self._kv_dtype: torch.dtype | None = None  # None: that of the model
        self._kv_scales: Sequence[KvScales] | None = None
        self._pool: KvPool | None = None
        self._graphs: DecodeGraphs | None = None
        self.vocabulary = vocabulary  # None: this rank computes the logits of all ids

    @property
    def kv_dtype(self) -> torch.dtype:
        """The type of keys and values."""
        return self._kv_dtype or self.dtype

    @property
    def kv_type(self) -> str:
        """The name of that type: a word of `--kv-cache-dtype`, or the model's dtype."""
        return next((name for name, dtype in KV_TYPES.items() if dtype is self._kv_dtype), self.facts.dtype)

    def use_kv_type(self, dtype: torch.dtype, scales: Sequence[KvScales] | None) -> None:
        """Let the pools that are made from now on keep 8 bits, with the scales of each layer, or the model's dtype."""
        self._kv_dtype, self._kv_scales = dtype, scales

    @property
    def kv_pool(self) -> KvPool | None:
        return self._pool

    @property
    def has_own_threads(self) -> bool:
        """Whether steps run in threads of their own.

        torch's threads would wait for work on the same cores and slow such steps down.
        """
        return self._decoder.has_own_threads

    def kv_bytes_per_block(self) -> int:
        """Return the bytes of keys and values that one block takes over all layers of this rank."""
        return kv_bytes_per_block(self.facts.kv_specs, block_size=self.facts.block_size, dtype=self.kv_dtype)

    def allocate_kv(self, num_blocks: int) -> None:
        """Make a new pool of `num_blocks` blocks and one scratch block. The contents of the pool before are lost."""
        self._graphs = None  # graphs hold the addresses of the old pool
        self._decoder.bind(None)  # so that the old pool is freed before the new pool is made
        self._pool = None
        self._pool = KvPool(
            specs=self.facts.kv_specs,
            num_blocks=num_blocks,
            block_size=self.facts.block_size,
            dtype=self.kv_dtype,
            device=self.device,
            scales=self._kv_scales,
        )
        self._decoder.bind(self._pool)

    def modules(self) -> Iterator[nn.Module]:
        """Return the modules of the model, for callers that only look at them."""
        return self._model.modules()

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        """Compute all tokens of the batch and write their keys and values. Logits are of `logit_rows_N` alone."""
        return self._joined(self._decoder.forward(batch, wants_hidden), keeps_parts=batch.keeps_parts)

    def _joined(self, output: ForwardOutput, *, keeps_parts: bool) -> ForwardOutput:
        """Lay whole rows of logits together, unless ranks that share a vocabulary leave them in their parts."""
        vocabulary = self.vocabulary
        if vocabulary is None or keeps_parts:
            return output
        with torch.inference_mode():
            return replace(output, logits_NV=vocabulary.join_rows(output.logits_NV), scan=None)

    @property
    def has_fixed_launches(self) -> bool:
        """Whether the launches of a decode step depend on its number of rows alone, as a graph of them needs."""
        return self.facts.layout == "flat" and self.device_scans is not None and self._has_fixed_attention

    @property
    def graphs(self) -> DecodeGraphs | None:
        """The graphs of decode steps over the present pool. None: each step is launched operation by operation."""
        return self._graphs

    def replay(self, seated: SeatedStep) -> ForwardOutput:
        """Compute a decode step by its graph. Every rank replays the steps that the other ranks replay."""
        assert self._graphs is not None
        return self._joined(self._graphs.replay(seated), keeps_parts=seated.keeps_parts)

    def graph_sizes(self, buckets: Sequence[int], *, num_slots: int, num_blocks: int | None = None) -> GraphSizes:
        """Return the sizes of graphs for so many rows. `num_blocks` bounds requests, None for a pool of any size."""
        facts = self.facts
        longest = facts.max_model_tokens or UNBOUNDED_TOKENS
        if num_blocks is not None:
            longest = min(longest, num_blocks * facts.block_size)
        return GraphSizes(
            buckets=buckets,
            num_slots=num_slots,
            table_width=-(-longest // facts.block_size),
            has_two_rope_tables=facts.rope_border is not None,
            has_rope_positions=self.media is not None and self.media.has_rope_positions,
        )

    def make_graphs(self, sizes: GraphSizes) -> DecodeGraphs:
        """Return graphs over the present pool, of which none is recorded yet."""
        assert self._pool is not None
        assert self.device_scans is not None
        return DecodeGraphs(
            forward=lambda batch: self._decoder.forward(batch, False),
            unpacker=self.device_scans,
            pool=self._pool,
            sizes=sizes,
            address_version=lambda: self.adapters.address_version,
        )

    def record_graphs(
        self,
        recorder: GraphRecorder,
        buckets: Sequence[int],
        on_progress: Callable[[float], None],
        *,
        num_slots: int,
        adapter_rank: int = 0,
        check: Check | None = None,
    ) -> bool:
        """Record decode steps of so many rows, over the present pool. Every rank calls this, with equal arguments.

        With an `adapter_rank` the steps whose rows have adapters of at most this rank are recorded too. `check` returns
        what is wrong with the graph of a bucket, or ""; None compares replays with steps. Returns False where a
        recording or a check fails on a rank. Steps are then launched one by one, as before.
        """
        pool = self._pool
        assert pool is not None
        began_s = time.monotonic()
        has_adapters = adapter_rank > 0 and self.adapters.hold_any(adapter_rank)
        sizes = self.graph_sizes(buckets, num_slots=num_slots, num_blocks=pool.num_blocks)
        made: list[tuple[DecodeGraphs, Check]] = []

        def make() -> str:
            graphs = self.make_graphs(replace(sizes, has_adapters=has_adapters))
            made.append((graphs, check or GraphCheck(graphs, vocab_size=self.facts.vocab_size, dtype=self.dtype).fault))
            return ""

        together = Together(self.parallel, self.device)
        reason = together.run(make).reason
        if not reason:
            [(graphs, checks)] = made
            num_kinds = 2 if has_adapters else 1
            shares = iter(range(1, num_kinds * len(graphs.buckets) + 1))
            recording = GraphRecording(
                graphs, recorder, together, lambda: on_progress(next(shares) / (num_kinds * len(graphs.buckets)))
            )
            reason = recording.record(NO_ADAPTER, checks)
        if reason:
            log.warning(
                "decode steps are launched one by one, because no graph of them can be had: more time of the host",
                extra={"reason": reason},
            )
            return False
        if has_adapters:
            reason = together.run(self._put_trial_adapter(adapter_rank)).reason if check is None else ""
            reason = reason or recording.record(TRIAL_PLACE, checks)
            if check is None:
                self.adapters.remove(TRIAL_PLACE)
            if reason:
                graphs.forget_adapters()
                log.warning("steps with adapters are launched one by one", extra={"reason": reason})
        seconds = round(time.monotonic() - began_s, 2)
        log.info(
            "decode steps recorded as graphs",
            extra={"buckets": graphs.recorded(), "seconds": seconds, "with_adapters": has_adapters and not reason},
        )
        self._graphs = graphs
        return True

    def _put_trial_adapter(self, max_rank: int) -> Callable[[], str]:
        """Return the work that lets rows name `TRIAL_PLACE`."""

        def put() -> str:
            trial = random_adapter(self.targets, rank=min(max_rank, TRIAL_RANK))
            self.adapters.put(TRIAL_PLACE, self.adapters.prepare(trial))
            return ""

        return put

    @torch.inference_mode()
    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Write state rows into other rows, which may lie behind those of the slots; all sources are read before.

        Raises the device's error where there is no memory for the further rows.
        """
        assert self._states is not None, "no layer of the model carries state"
        rows = (torch.tensor(numbers, device=self.device) for numbers in (sources, targets))
        self._states.copy(*rows, num_rows=max(targets) + 1)

    @property
    def encodes_media(self) -> bool:
        """Whether this rank has a tower."""
        return self._tower is not None and self._tower.has_weights

    def sample_media(self, num_rows: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of an item of about so many rows, to measure what `encode_media` takes."""
        assert self._tower is not None, "the model takes no images"
        return self._tower.sample(num_rows)

    def encode_media(self, tensors: Mapping[str, torch.Tensor]) -> MediaRows:
        """Return the rows of one item. A thread beside the steps may call this, on rank 0, which alone has the weights.

        `tensors` have the names of `media.tensor_names`. Raises MediaFault for tensors that the tower cannot compute.
        """
        assert self._tower is not None, "the model takes no images"
        return self._tower.encode(tensors)

    def rope_positions(
        self, token_ids: Sequence[int], spans: Sequence[TokenSpan], facts: Sequence[Mapping[str, torch.Tensor]]
    ) -> RopePositions:
        """Return the rotary positions of a prompt, by the model's own rule. Any thread of any rank may call this.

        Needs `media.has_rope_positions`. `facts` are, for each span, those tensors of its item that
        `media.position_tensors` names. Raises MediaFault where spans and grids do not fit.
        """
        assert self._tower is not None, "the model takes no images"
        return self._tower.rope_positions(token_ids, spans, facts)

    @torch.inference_mode()
    def copy_places(self, *, source_block: int, target_block: int, num_places: int) -> None:
        """Copy the first places of a block, in all layers, after the steps launched so far (rule 10)."""
        assert self._pool is not None
        for tensor in (*self._pool.keys, *self._pool.values):
            tensor[target_block, :num_places] = tensor[source_block, :num_places]

    @torch.inference_mode()
    def project(self, hidden_nD: torch.Tensor, adapter: int = NO_ADAPTER) -> torch.Tensor:
        """Return float32 logits `[n, V]` of rows of `hidden_TD` by the model's own head.

        `adapter` is the place of the adapter that all these rows have.
        """
        logits_nV = self._decoder.project(hidden_nD, adapter)
        return logits_nV if self.vocabulary is None else self.vocabulary.join_rows(logits_nV)

    @torch.inference_mode()
    def project_part(self, hidden_nD: torch.Tensor, adapter: int = NO_ADAPTER) -> torch.Tensor:
        """Return the logits of `project` for the ids of this rank, without an exchange."""
        return self._decoder.project(hidden_nD, adapter)
