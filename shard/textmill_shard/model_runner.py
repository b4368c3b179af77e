"""Runs the model of one rank on flat batches over the paged KV pool."""

# T tokens of the step, N rows whose logits are wanted, V vocabulary, D width of the hidden states, n rows handed in

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from textmill_shard.attention.seam import StepContext
from textmill_shard.decoder_tap import DecoderTap
from textmill_shard.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.kv_pool import KvPool, LayerKvSpec, kv_bytes_per_block
from textmill_shard.parallel import TensorParallel


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the loaded model; the same on every rank except `weight_bytes` and `kv_specs`."""

    model_type: str  # `model_type` of config.json
    dtype: str  # "float32", "bfloat16", "float16"
    device: str  # "cpu", "cuda"
    vocab_size: int  # ids the logits cover: 0 .. vocab_size - 1
    eos_token_ids: tuple[int, ...]
    max_model_tokens: int  # longest sequence the positions allow, 0 = unbounded
    weight_bytes: int  # bytes of parameters and buffers that this rank holds
    tokenizer_digest: str  # hex blake2b-16 of tokenizer.json, "" without one
    block_size: int  # tokens per block
    kv_specs: tuple[LayerKvSpec, ...]  # per attention layer, of this rank
    can_project: bool  # prompt logprobs can be given
    layout: str = "flat"


class ModelRunner:
    """Owns the weights and the KV pool of this rank. One thread calls it.

    With more than one rank, `forward` and `project` are called on every rank with equal arguments.
    """

    def __init__(
        self, *, model: nn.Module, facts: ModelFacts, context: StepContext, tap: DecoderTap, parallel: TensorParallel
    ) -> None:
        self.facts = facts
        self.parallel = parallel
        self.dtype: torch.dtype = getattr(torch, facts.dtype)
        self.device = torch.device(facts.device)
        self._model = model
        self._context = context
        self._tap = tap

    @property
    def kv_pool(self) -> KvPool | None:
        return self._context.pool

    def kv_bytes_per_block(self) -> int:
        """Bytes of K and V that one block takes on this rank, all layers."""
        return kv_bytes_per_block(self.facts.kv_specs, block_size=self.facts.block_size, dtype=self.dtype)

    def allocate_kv(self, num_blocks: int) -> None:
        """Make the pool anew with `num_blocks` blocks and one scratch block more; what stood in it is lost."""
        self._context.pool = None  # the old one goes before the new one comes
        self._context.pool = KvPool(
            specs=self.facts.kv_specs,
            num_blocks=num_blocks,
            block_size=self.facts.block_size,
            dtype=self.dtype,
            device=self.device,
        )

    def modules(self) -> Iterator[nn.Module]:
        """The layers of the model, to look at."""
        return self._model.modules()

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        """Compute all tokens of the batch and write their K and V. Logits only for `logit_rows_N`."""
        self._context.begin(batch)
        output = self._model(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.position_ids_T.unsqueeze(0),
            use_cache=False,
            logits_to_keep=batch.logit_rows_N,
        )
        hidden_TD = self._tap.take_hidden() if wants_hidden else None
        return ForwardOutput(logits_NV=output.logits[0].float(), hidden_TD=hidden_TD)

    @torch.inference_mode()
    def project(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        """Give float32 logits `[n, V]` of rows of `hidden_TD` through the model's own head (for prompt logprobs)."""
        with self._tap.given(hidden_nD):
            output = self._model(
                input_ids=torch.zeros(1, hidden_nD.shape[0], dtype=torch.int64, device=self.device), use_cache=False
            )
        logits_nV: torch.Tensor = output.logits[0].float()
        return logits_nV
