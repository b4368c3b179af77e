"""Ranks that are threads of one process and share the vocabulary of a `PrefixRunner`: rank 0 and one follower."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.follower import Follower
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.ranks import RankRoom
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import Plan, ShardFacts

from tests.fakes.formula_adapters import read_shift
from tests.fakes.queue_channel import QueueChannel
from tests.fakes.step_engine import make_part_sampling
from tests.fakes.step_harness import NUM_BLOCKS, VOCAB_SIZE, WAIT_S, PrefixRunner, Shard

SIZES = (30, VOCAB_SIZE - 30)


@dataclass
class Meeting:
    """Where the threads exchange tensors. Both must bring tensors of one shape."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    brought: list[torch.Tensor | None] = field(default_factory=lambda: [None, None])
    sent_bytes: list[int] = field(default_factory=list)  # of each exchange, by each rank


class ThreadRoom:
    """One rank's side of a meeting."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting = meeting
        self._rank = rank

    def add(self, tensor: torch.Tensor) -> None:
        tensor.copy_(self.gather(tensor).sum(0))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        meeting = self._meeting
        meeting.brought[self._rank] = tensor.clone()
        meeting.barrier.wait(WAIT_S)
        found = torch.stack([part for part in meeting.brought if part is not None])
        if self._rank == 0:
            meeting.sent_bytes.append(tensor.nbytes)
        meeting.barrier.wait(WAIT_S)
        return found


class UnevenRunner(PrefixRunner):
    """A `PrefixRunner` whose ids have no equal logits, of which a rank with a vocabulary has its part."""

    def __init__(self, *, num_blocks: int = NUM_BLOCKS, vocabulary: SharedVocabulary | None = None) -> None:
        super().__init__(num_blocks=num_blocks)
        self._vocabulary = vocabulary
        order_V = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
        self._slope_V = order_V / (VOCAB_SIZE / 2.0)

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        output = super().forward(batch, wants_hidden)
        logits_NV = output.logits_NV + self._slope_V
        hidden_TD = output.hidden_TD
        if hidden_TD is not None:
            hidden_TD = hidden_TD + 2.0 * self._slope_V
        return replace(output, logits_NV=self._part(logits_NV) if batch.keeps_parts else logits_NV, hidden_TD=hidden_TD)

    def project_part(self, hidden_nD: torch.Tensor, adapter: int = 0) -> torch.Tensor:
        return self._part(self.project(hidden_nD, adapter))

    def _part(self, logits_NV: torch.Tensor) -> torch.Tensor:
        assert self._vocabulary is not None
        first = self._vocabulary.first_id
        return logits_NV[:, first : first + self._vocabulary.num_ids].contiguous()


class SharedShard(Shard):
    """A shard with a follower in a thread. Plans reach the follower by number."""

    def __init__(
        self,
        *,
        facts: ShardFacts,
        make_sampler: Callable[[], Sampler],
        matchers: MatcherFactory | None = None,
        token_reader: TokenReader | None = None,
    ) -> None:
        self.meeting = Meeting()
        self.channel = QueueChannel()
        self._plans: list[Plan] = []
        vocabularies = [
            SharedVocabulary(TensorParallel(rank, 2, room=cast(RankRoom, ThreadRoom(self.meeting, rank))), SIZES)
            for rank in (0, 1)
        ]
        own, theirs = (UnevenRunner(num_blocks=facts.num_blocks, vocabulary=vocabulary) for vocabulary in vocabularies)
        super().__init__(
            facts=facts,
            runner=own,
            channel=self.channel,
            sampler=make_sampler(),
            matchers=matchers,
            token_reader=token_reader,
            vocabulary=vocabularies[0],
        )
        self.runner, self.other_runner = own, theirs
        self.other_sampler = make_sampler()
        self.other_error: Exception | None = None
        follower = Follower(
            executor=StepExecutor(
                runner=theirs, facts=facts, has_overlap=token_reader is not None, vocabulary=vocabularies[1]
            ),
            channel=self.channel,
            status=ShardStatus(),
            read_plan=lambda data: self._plans[int(data)],
            reader=AdapterReader(read_shift, SoloGroup()),
            sampling=make_part_sampling(self.other_sampler, facts, self.channel, vocabularies[1]),
        )

        def follow() -> None:
            try:
                follower.run()
            except Exception as error:
                self.other_error = error
                self.meeting.barrier.abort()

        self._other = threading.Thread(target=follow, name="follower")

    def __enter__(self) -> "SharedShard":
        self._other.start()
        super().__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        self._other.join(WAIT_S)
        assert not self._other.is_alive()

    def data_of(self, plan: Plan) -> bytes:
        self._plans.append(plan)
        return str(len(self._plans) - 1).encode()
