"""The step loop of a rank other than 0, which executes the entries of rank 0 and decides nothing (rule 24)."""

from collections.abc import Callable
from dataclasses import replace

import torch

from textmill_shard.engine.adapter_reader import AdapterReader
from textmill_shard.engine.part_sampling import PartSampling
from textmill_shard.engine.rank_channel import AdapterOrder, OrderKind, RankChannel, RankEntry
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.upload import Upload
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.slots.plan import IdArray, Plan


class Follower:
    """Executes entries in a thread of its own until rank 0 says stop.

    `read_plan` makes a plan from the bytes that an entry carries.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        channel: RankChannel,
        status: ShardStatus,
        read_plan: Callable[[bytes], Plan],
        reader: AdapterReader,
        sampling: PartSampling | None = None,
    ) -> None:
        """`sampling` is None where each rank computes all logits."""
        self._executor = executor
        self._channel = channel
        self._status = status
        self._read_plan = read_plan
        self._reader = reader
        self._sampling = sampling

    def run(self) -> None:
        """Execute entries until the last one. Raises when rank 0 has gone, and for an exception of the model."""
        while True:
            self._status.progress.rest()
            entry = self._channel.receive()
            self._status.progress.expect()
            if entry.is_stop:
                return
            self._execute(entry)

    def _obey(self, order: AdapterOrder) -> None:
        match order.kind:
            case OrderKind.READ:
                self._reader.begin(order.folder, lambda outcomes: None)
            case OrderKind.PUT:
                self._executor.put_adapter(self._reader.take())
            case OrderKind.DISCARD:
                self._reader.discard()
            case OrderKind.REMOVE:
                self._executor.remove_adapter(order.digest)

    def _execute(self, entry: RankEntry) -> None:
        executor, sampling = self._executor, self._sampling
        if entry.look is not None:
            assert sampling is not None, "ranks that share no vocabulary have whole rows"
            sampling.follow(entry.look)
            return
        if entry.is_new_epoch:
            executor.begin_epoch()
        rewinds = entry.rewinds
        if len(rewinds.slots):
            executor.rewind(rewinds.slots, rewinds.tokens, rewinds.is_launched)
            if sampling is not None:
                for slot, output_ids in zip(rewinds.slots.tolist(), rewinds.output_ids, strict=True):
                    sampling.admit(replace(executor.table.admit_of(slot), output_ids=output_ids))
        executor.end(entry.ended_slots.tolist())
        for order in entry.adapter_orders:
            self._obey(order)
        for data in entry.plans:
            plan = self._read_plan(data)
            executor.apply(plan)
            if sampling is not None:
                for admit in plan.admits:
                    sampling.admit(admit)
        executor.release(entry.released_slots.tolist())
        executor.set_ready(entry.ready_slots.tolist(), entry.ready_until.tolist())
        if entry.apart is not None:
            self._status.begin_step()
            executor.follow_apart(entry.apart)
            self._status.finish_step(entry.step, executor.plan_applied)
            return
        step = executor.compose()
        if step.is_empty:
            return
        self._status.begin_step()
        slots_N = step.slots_R[step.samples_R]
        upload = Upload(executor.device)
        if sampling is not None:
            sampling.prepare(slots_N, upload)
        output = executor.forward(step, executor.build(step, upload))
        for stretch in executor.prompt_stretches(step, output.hidden_TD):
            # Rank 0 needs this rank's part of the output head, so this rank makes the calls that rank 0 makes, in the
            # order of rank 0, and does not use the result.
            executor.rate(stretch if sampling is not None else replace(stretch, top_n=0))
        if len(slots_N):
            self._sample(slots_N, output)
        self._status.finish_step(entry.step, executor.plan_applied)

    def _sample(self, slots_N: IdArray, output: ForwardOutput) -> None:
        """Do this rank's part of the sampling, and take in the tokens that rank 0 has drawn."""
        executor, sampling = self._executor, self._sampling
        gift = None if sampling is None else sampling.give(output)
        for row, slot in enumerate(slots_N.tolist()):
            if executor.table.admit_of(slot).beams is not None:
                executor.table.set_apart(slot)  # its prompt is computed, and rank 0 searches from now on
                executor.whole_row(output, row)
        has_overlap = executor.feed is not None
        if sampling is not None and gift is not None and gift.may_look and not (has_overlap and executor.can_rewind):
            sampling.await_look()
        if executor.feed is not None:
            # Nothing on the host of this rank depends on the ids, so that the host never waits for them.
            tokens_N = torch.empty(len(slots_N), dtype=torch.int64, device=executor.device)
            self._channel.share_tensor(tokens_N)
            executor.feed.put(tokens_N)
        else:
            sampled_N = self._channel.share_tokens(slots_N.copy())
            executor.fill(slots_N, executor.table.num_tokens[slots_N], sampled_N)
            tokens_N = torch.from_numpy(sampled_N).to(executor.device)
        if sampling is not None:
            sampling.note(tokens_N)
