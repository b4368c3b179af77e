"""Runs the model of one rank on flat batches over the paged KV pool."""

# T tokens of the step, N rows whose logits are wanted, V vocabulary, D width of the hidden states, n rows handed in

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool, LayerKvSpec, kv_bytes_per_block
from textmill_shard.native.kernels import Kernels


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the loaded model; the same on every rank except `weight_bytes` and `kv_specs`."""

    model_type: str  # `model_type` of config.json
    dtype: str  # "float32", "bfloat16", "float16"
    device: str  # "cpu", "cuda"
    vocab_size: int  # ids the logits cover: 0 .. vocab_size - 1
    eos_token_ids: tuple[int, ...]
    max_model_tokens: int  # longest sequence the positions (of the decoder) allow, 0 = unbounded
    weight_bytes: int  # bytes of parameters and buffers that this rank holds
    tokenizer_digest: str  # hex blake2b-16 of tokenizer.json, "" without one
    block_size: int  # tokens per block
    kv_specs: tuple[LayerKvSpec, ...]  # per attention layer, of this rank
    can_project: bool  # prompt logprobs can be given
    layout: str = "flat"
    state_bytes: int = 0  # of the rows that layers other than attention keep per slot
    rope_border: int | None = None  # requests of more tokens take the long rotary table; None = there is one table
    decoder_prompt_ids: tuple[int, ...] = ()  # ids that the decoder begins with; empty = the model has no encoder
    max_encoder_tokens: int = 0  # longest text that the positions of the encoder allow, 0 = unbounded


class StepDecoder(Protocol):
    """What computes a step: transformers' code (`transformers_decoder`) or the native one (`native_decoder`)."""

    has_own_threads: bool  # computes in threads that are not torch's

    def bind(self, pool: KvPool | None) -> None:
        """Read and write these K and V tensors from now on; None: forget the last ones."""
        ...

    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        """In torch's inference mode where torch computes."""
        ...

    def project(self, hidden_nD: torch.Tensor) -> torch.Tensor: ...


class ModelRunner:
    """Owns the weights and the KV pool of this rank. One thread calls it.

    With more than one rank, `forward` and `project` are called on every rank with equal arguments.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        decoder: StepDecoder,
        facts: ModelFacts,
        parallel: TensorParallel,
        kernels: Kernels | None = None,
    ) -> None:
        self.kernels = kernels  # the native ones, for the thread that runs the steps; None = there are none
        self.facts = facts
        self.parallel = parallel
        self.dtype: torch.dtype = getattr(torch, facts.dtype)
        self.device = torch.device(facts.device)
        self._model = model
        self._decoder = decoder
        self._pool: KvPool | None = None

    @property
    def kv_pool(self) -> KvPool | None:
        return self._pool

    @property
    def has_own_threads(self) -> bool:
        """Steps run in threads of their own: torch's would wait for work on the same cores, and slow them down."""
        return self._decoder.has_own_threads

    def kv_bytes_per_block(self) -> int:
        """Bytes of K and V that one block takes on this rank, all layers."""
        return kv_bytes_per_block(self.facts.kv_specs, block_size=self.facts.block_size, dtype=self.dtype)

    def allocate_kv(self, num_blocks: int) -> None:
        """Make the pool anew with `num_blocks` blocks and one scratch block more; what stood in it is lost."""
        self._decoder.bind(None)  # the old one goes before the new one comes
        self._pool = None
        self._pool = KvPool(
            specs=self.facts.kv_specs,
            num_blocks=num_blocks,
            block_size=self.facts.block_size,
            dtype=self.dtype,
            device=self.device,
        )
        self._decoder.bind(self._pool)

    def modules(self) -> Iterator[nn.Module]:
        """The layers of the model, to look at."""
        return self._model.modules()

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        """Compute all tokens of the batch and write their K and V. Logits only for `logit_rows_N`."""
        return self._decoder.forward(batch, wants_hidden)

    @torch.inference_mode()
    def copy_places(self, *, source_block: int, target_block: int, num_places: int) -> None:
        """Copy K and V of the first places of a block, all layers, behind the steps launched so far (rule 10)."""
        assert self._pool is not None
        for tensor in (*self._pool.keys, *self._pool.values):
            tensor[target_block, :num_places] = tensor[source_block, :num_places]

    @torch.inference_mode()
    def project(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        """Give float32 logits `[n, V]` of rows of `hidden_TD` through the model's own head (for prompt logprobs)."""
        return self._decoder.project(hidden_nD)
