"""Rule 24: followers execute what rank 0 sends, here over a queue; `test_shard_process.py` has the real groups."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.apart_pass import ApartPass, ApartRows
from textmill_shard.engine.follower import Follower
from textmill_shard.engine.media_rows import ReceivedRows
from textmill_shard.engine.rank_channel import (
    HEADER_INTS,
    AdapterOrder,
    OrderKind,
    RankEntry,
    Rewinds,
    pack_entry,
    unpack_entry,
)
from textmill_shard.engine.session import EndReason, StreamEnd
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.server.wire import plan_from_bytes, plan_from_wire
from textmill_shard.slots.beam_blocks import BlockCopy

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer
from tests.fakes.formula_adapters import PairGroup, digest_of, read_shift
from tests.fakes.late_tokens import late_reader
from tests.fakes.queue_channel import QueueChannel
from tests.fakes.step_harness import FACTS, WAIT_S, PrefixRunner, Shard, greedy
from tests.fakes.step_media import (
    FORMULA_FACTS,
    PLACEHOLDER,
    SHARD_FACTS,
    FormulaTower,
    image_digest,
    media_desk,
    put_image,
)


@pytest.mark.parametrize("is_new_epoch", [False, True])
@pytest.mark.parametrize("is_stop", [False, True])
@pytest.mark.parametrize(
    ("ended", "released", "plans"),
    [([], [], ()), ([3, 1], [], ()), ([], [2], (b"", b"abc")), ([7], [5, 6, 9], (b"x" * 1000, b"y"))],
)
def test_an_entry_survives_the_way(
    ended: list[int], released: list[int], plans: tuple[bytes, ...], is_new_epoch: bool, is_stop: bool
) -> None:
    orders = (
        AdapterOrder(OrderKind.READ, folder="/a/\udcff b"),
        AdapterOrder(OrderKind.PUT),
        AdapterOrder(OrderKind.DISCARD),
        AdapterOrder(OrderKind.REMOVE, digest=bytes(range(16))),
    )[: len(plans) * 2]
    sent = RankEntry(
        step=2**40,
        is_new_epoch=is_new_epoch,
        is_stop=is_stop,
        ended_slots=np.array(ended, dtype=np.int64),
        plans=plans,
        released_slots=np.array(released, dtype=np.int64),
        adapter_orders=orders,
        ready_slots=np.array(released[:2], dtype=np.int64),
        ready_until=np.array([2**63 - 1, 17][: len(released)], dtype=np.int64),
        rewinds=Rewinds(
            np.array(ended), np.array(ended) + 70_000, np.array(ended) > 1, tuple(np.arange(slot) for slot in ended)
        ),
    )
    header, payload = pack_entry(sent)
    assert (len(header), header[-1]) == (HEADER_INTS, len(payload))  # as many numbers as a follower receives
    found = unpack_entry(header, payload)
    assert (found.step, found.is_new_epoch, found.is_stop) == (2**40, is_new_epoch, is_stop)
    assert (found.ended_slots.tolist(), found.released_slots.tolist(), found.plans) == (ended, released, plans)
    assert found.adapter_orders == orders
    assert found.ready_slots.tolist() == sent.ready_slots.tolist()
    assert found.ready_until.tolist() == sent.ready_until.tolist()
    assert (found.rewinds.slots.tolist(), found.rewinds.tokens.tolist()) == (ended, [slot + 70_000 for slot in ended])
    assert found.rewinds.is_launched.tolist() == [slot > 1 for slot in ended]
    assert [output.tolist() for output in found.rewinds.output_ids] == [[*range(slot)] for slot in ended]
    assert found.look is None
    assert not found.masks


def admit(slot: int, prompt: list[int], *, request_id: int, max_new: int, num_blocks: int = 6) -> pb.Admit:
    def pack(values: list[int]) -> bytes:
        return np.array(values, dtype="<u4").tobytes()

    return pb.Admit(
        request_id=request_id,
        slot=slot,
        prompt_ids=pack(prompt),
        block_ids=[pack(list(range(8 * slot, 8 * slot + num_blocks)))],
        max_new_tokens=max_new,
        ignore_eos=True,
        prompt_logprobs_from=1,
        sampling=pb.Sampling(temperature=1.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.0),
    )


def test_rule_24_a_follower_composes_the_steps_of_rank_0() -> None:
    channel = QueueChannel()
    runner = PrefixRunner()
    status = ShardStatus()
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=FACTS),
        channel=channel,
        status=status,
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, SoloGroup()),
    )
    errors: list[Exception] = []

    def follow() -> None:
        try:
            follower.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=follow, name="follower")
    with Shard(channel=channel) as shard:
        thread.start()

        def send(message: pb.Plan) -> None:
            shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())

        budget = pb.Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=3)
        starving = admit(1, [4] * 9, request_id=2, max_new=30, num_blocks=3)
        send(pb.Plan(number=1, admits=[admit(0, [1, 2], request_id=1, max_new=5), starving], budget=budget))
        tokens = shard.run_to_end(0)
        assert tokens[0] == greedy([1, 2], 5)
        # The same slot again, a request that only a drop ends, and a new epoch.
        send(pb.Plan(number=2, drops=[pb.Drop(slot=1, request_id=2)], admits=[admit(0, [6], request_id=3, max_new=3)]))
        shard.results.clear()
        assert shard.run_to_end(0)[0] == greedy([6], 3)
        shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        send(pb.Plan(number=1, admits=[admit(0, [9, 9], request_id=4, max_new=4)]))
        assert shard.run_to_end(0)[0] == greedy([9, 9], 4)
        last_step = shard.results[-1].step
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not errors
    own = shard.runner.batches
    assert len(runner.batches) == len(own)
    for mine, theirs in zip(own, runner.batches, strict=True):
        for name in ("input_ids_T", "position_ids_T", "kv_places_T", "query_starts", "block_tables_RB", "logit_rows_N"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
    assert status.snapshot.last_step == last_step
    assert channel.entries[-1].is_stop
    assert [entry.is_new_epoch for entry in channel.entries].count(True) >= 2


def test_rule_24_ended_slots_are_told_before_the_plans_that_reuse_them() -> None:
    channel = QueueChannel()
    with Shard(channel=channel) as shard:
        message = pb.Plan(number=1, admits=[admit(0, [1, 2], request_id=1, max_new=2)])
        shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())
        shard.run_to_end(0)
        # The second request makes the loop run once more. In that turn, the loop sends the end of the first request.
        message = pb.Plan(number=2, admits=[admit(0, [3], request_id=2, max_new=1)])
        shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())
        shard.results.clear()
        shard.run_to_end(0)
    entries = [(entry.ended_slots.tolist(), len(entry.plans)) for entry in channel.entries]
    ends = [index for index, (ended, _) in enumerate(entries) if ended == [0]]
    second_plan = [index for index, (_, num_plans) in enumerate(entries) if num_plans][1]
    assert ends[0] <= second_plan


def test_a_step_of_several_ranks_without_memory_is_not_tried_again() -> None:
    """The other ranks wait in a collective call, so that this rank ends and the group starts again."""
    error = torch.OutOfMemoryError("none left")
    with Shard(channel=QueueChannel()) as shard:
        shard.runner.raises = error
        message = pb.Plan(number=1, admits=[admit(0, [1, 2], request_id=1, max_new=2)])
        shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.FAILED
    assert shard.error is error


@pytest.mark.parametrize("num_plans", [1, 3])
def test_rule_24_plans_of_one_boundary_travel_in_order(num_plans: int) -> None:
    gate = threading.Semaphore(0)
    channel = QueueChannel()
    with Shard(channel=channel, gate=gate) as shard:
        plans = [pb.Plan(number=1, admits=[admit(0, [1, 2], request_id=1, max_new=9)])]
        plans += [pb.Plan(number=2 + index, drops=[pb.Drop(slot=3, request_id=index)]) for index in range(num_plans)]
        shard.engine.submit_plan(shard.session, plan_from_wire(plans[0]), plans[0].SerializeToString())
        shard.hold()
        for plan in plans[1:]:
            shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        shard.step()
        shard.step()
        carried = [entry.plans for entry in channel.entries if entry.plans]
        assert carried[-1] == tuple(plan.SerializeToString() for plan in plans[1:])


def test_rule_24_a_follower_holds_and_releases_the_slots_of_rank_0(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path)
    text = (folder / "tokenizer.json").read_text()
    matchers = MatcherFactory(text, vocab_size=320, eos_token_ids=(END_ID,))
    facts = replace(FACTS, vocab_size=320, eos_token_ids=(END_ID,), features=("grammar", "prompt_logprobs"))
    channel = QueueChannel()
    runner, leader_runner = PrefixRunner(vocab_size=320), PrefixRunner(vocab_size=320)
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=facts),
        channel=channel,
        status=ShardStatus(),
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, SoloGroup()),
    )
    thread = threading.Thread(target=follower.run, name="follower")
    with Shard(channel=channel, facts=facts, matchers=matchers, runner=leader_runner) as shard:
        thread.start()
        admits = [admit(slot, [4] * (3 + slot), request_id=slot, max_new=12) for slot in range(4)]
        for message in admits:
            message.ClearField("ignore_eos")
        admits[1].grammar.CopyFrom(pb.Grammar(text="start: /[ab]{3}/"))
        admits[2].grammar.CopyFrom(pb.Grammar(text="start: /(/"))  # fails on rank 0
        plan = pb.Plan(number=1, admits=admits)
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens = shard.run_to_end(0, 1, 2, 3)
        # The seats of the two that ended serve again, one with a grammar that is compiled already.
        again = [admit(slot, [5, 6], request_id=20 + slot, max_new=12) for slot in (1, 2)]
        again[1].grammar.CopyFrom(pb.Grammar(text="start: /[ab]{3}/"))
        plan = pb.Plan(number=2, admits=again)
        shard.results.clear()
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens_again = shard.run_to_end(1, 2)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert len(tokens[1]) == len(tokens_again[2]) == 4
    assert tokens[1][-1] == END_ID
    assert 2 not in tokens
    released = [entry.released_slots.tolist() for entry in channel.entries if len(entry.released_slots)]
    assert sorted(slot for slots in released for slot in slots) == [1, 2, 2]
    assert len(runner.batches) == len(leader_runner.batches)
    for mine, theirs in zip(leader_runner.batches, runner.batches, strict=True):
        assert mine.input_ids_T.tolist() == theirs.input_ids_T.tolist()
        assert mine.kv_places_T.tolist() == theirs.kv_places_T.tolist()


def test_rule_24_a_follower_loads_and_unloads_the_adapters_of_rank_0() -> None:
    channel, group = QueueChannel(), PairGroup()
    runner = PrefixRunner()
    facts = replace(FACTS, adapter_bytes=100)
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=facts),
        channel=channel,
        status=ShardStatus(),
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, group.of_rank(1)),
    )
    thread = threading.Thread(target=follower.run, name="follower")
    reader = AdapterReader(read_shift, group.of_rank(0))
    with Shard(channel=channel, facts=facts, reader=reader) as shard:
        thread.start()
        for name in ("shift-2", "shift-3", "bad", "shift-3", "shift-20"):
            answer = shard.engine.load_adapter(f"/adapters/{name}", expected_digest=b"")
            assert (answer.exception(WAIT_S) is None) == (name in ("shift-2", "shift-3"))
        shard.engine.unload_adapter(digest_of(2)).result(WAIT_S)
        message = admit(0, [1, 2], request_id=1, max_new=4)
        message.adapter_digest = digest_of(3)
        plan = pb.Plan(number=1, admits=[message, admit(1, [5], request_id=2, max_new=4)])
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens = shard.run_to_end(0, 1)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert tokens[0] == greedy([1, 2], 4, shift=3)
    assert tokens[1] == greedy([5], 4)
    assert runner.adapters.shifts == shard.runner.adapters.shifts == {0: 0, 2: 3}
    assert [batch.adapters_R.tolist() for batch in runner.batches if batch.adapters_R is not None] == [
        batch.adapters_R.tolist() for batch in shard.runner.batches if batch.adapters_R is not None
    ]


def test_rule_24_a_follower_waits_for_the_rows_of_rank_0_and_has_no_tower() -> None:
    channel, runner = QueueChannel(), PrefixRunner()
    rows = ReceivedRows(FORMULA_FACTS, channel, dtype=torch.float32, device=torch.device("cpu"))
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=SHARD_FACTS, media=rows),
        channel=channel,
        status=ShardStatus(),
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, SoloGroup()),
    )
    thread = threading.Thread(target=follower.run, name="follower")
    tower = FormulaTower()
    bad, good = (3, 3, 3), (11, 12, 13, 14)
    tower.raises = lambda pixels: RuntimeError("bad") if pixels == list(bad) else None
    desk = media_desk(tower)

    def with_image(message: pb.Admit, pixels: tuple[int, ...], start: int) -> pb.Admit:
        message.media.append(pb.MediaSpan(digest=image_digest(pixels), start=start, num_tokens=len(pixels)))
        return message

    with Shard(channel=channel, facts=SHARD_FACTS, media=desk) as shard:
        thread.start()
        put_image(desk, bad)
        put_image(desk, good)
        prompt = [1, 2, *[PLACEHOLDER] * 4, 5]
        plan = pb.Plan(
            number=1,
            admits=[
                with_image(admit(0, prompt, request_id=1, max_new=4), good, 2),
                with_image(admit(1, [*[PLACEHOLDER] * 3, 5], request_id=2, max_new=4), bad, 0),
                with_image(admit(2, [PLACEHOLDER, PLACEHOLDER, 5], request_id=3, max_new=4), (1, 1), 0),  # never put
                admit(3, [9], request_id=4, max_new=4),
            ],
            budget=pb.Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=3),
        )
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens = shard.run_to_end(0, 1, 2, 3)
        # The seats of the two that failed serve again.
        plan = pb.Plan(number=2, admits=[admit(slot, [6, 7], request_id=20 + slot, max_new=3) for slot in (1, 2)])
        shard.results.clear()
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens_again = shard.run_to_end(1, 2)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert tokens == {0: greedy([1, 2, *good, 5], 4), 3: greedy([9], 4)}
    assert tokens_again == {1: greedy([6, 7], 3), 2: greedy([6, 7], 3)}
    assert runner.pool == shard.runner.pool  # the rows of the images are in it, as they are on rank 0
    assert len(runner.batches) == len(shard.runner.batches)


def test_rule_24_a_follower_of_overlapped_steps_reads_no_token_and_computes_what_rank_0_computes() -> None:
    """Rows that draw again make rank 0 take steps back, and a delayed reader lets the two ranks know tokens apart."""
    channel = QueueChannel()
    facts = replace(FACTS, vocab_size=50)
    runner = PrefixRunner()
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=facts, has_overlap=True),
        channel=channel,
        status=ShardStatus(),
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, SoloGroup()),
    )
    thread = threading.Thread(target=follower.run, name="follower")
    sampler = Sampler(num_slots=facts.num_slots, device=torch.device("cpu"), num_candidates=2)
    with Shard(channel=channel, facts=facts, sampler=sampler, token_reader=late_reader(3)) as shard:
        thread.start()
        admits = [admit(slot, [4] * (3 + slot), request_id=slot, max_new=20 - slot, num_blocks=8) for slot in range(4)]
        for slot, message in enumerate(admits[:3]):
            message.sampling.CopyFrom(
                pb.Sampling(
                    do_sample=True, temperature=4.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.3, seed=slot
                )
            )
        plan = pb.Plan(
            number=1, admits=admits, budget=pb.Budget(max_step_tokens=9, max_prefill_tokens=7, max_chunk_tokens=3)
        )
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens = shard.run_to_end(0, 1, 2, 3)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [len(tokens[slot]) for slot in range(4)] == [20, 19, 18, 17]
    assert sum(len(entry.rewinds.slots) for entry in channel.entries) > 5
    assert len(runner.batches) == len(shard.runner.batches)
    for mine, theirs in zip(shard.runner.batches, runner.batches, strict=True):
        for name in ("input_ids_T", "position_ids_T", "kv_places_T", "query_starts", "block_tables_RB", "slots_R"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
    assert runner.pool == shard.runner.pool


@pytest.mark.parametrize("num_copies", [0, 3])
def test_a_pass_of_searches_survives_the_way_beside_plans(num_copies: int) -> None:
    copies = tuple(BlockCopy(number, 70_000 + number, 3) for number in range(num_copies))
    tables = (np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((1, 0), dtype=np.int32))
    rows = ApartRows(np.array([4, 4, 9]), np.array([7, 7, 2**33]), np.array([1, 2, 150_000]), tables)
    sent = RankEntry(
        step=3, plans=(b"abc",), adapter_orders=(AdapterOrder(OrderKind.PUT),), apart=ApartPass(copies, rows)
    )
    found = unpack_entry(*pack_entry(sent))
    assert (found.plans, found.adapter_orders) == (sent.plans, sent.adapter_orders)
    assert found.apart is not None
    assert found.apart.copies == copies
    for name in ("slots_R", "starts_R", "tokens_R"):
        assert getattr(found.apart.rows, name).tolist() == getattr(rows, name).tolist()
    assert [table.tolist() for table in found.apart.rows.tables] == [[[0, 1, 2], [3, 4, 5]], [[]]]
    assert unpack_entry(*pack_entry(RankEntry(step=3, plans=(b"abc",)))).apart is None


def search(slot: int, prompt: list[int], *, request_id: int, first_block: int, num_beams: int = 3) -> pb.Admit:
    """Return the admit of a search of 9 tokens, whose blocks lie one behind the other."""
    made = admit(slot, prompt, request_id=request_id, max_new=9)
    made.ClearField("prompt_logprobs_from")
    made.ignore_eos = False
    made.beams.CopyFrom(pb.Beams(num_beams=num_beams, num_sequences=1, length_penalty=1.0))
    num_full = len(prompt) // FACTS.block_size
    count = num_full + num_beams * (-(-(len(prompt) + 8) // FACTS.block_size) - num_full)
    made.block_ids[:] = [np.arange(first_block, first_block + count, dtype="<u4").tobytes()]
    return made


@pytest.mark.parametrize("has_overlap", [False, True])
def test_rule_34_a_follower_computes_the_searches_of_rank_0(has_overlap: bool) -> None:
    channel = QueueChannel()
    facts = replace(FACTS, features=(*FACTS.features, "beams"))
    runner = PrefixRunner()
    follower = Follower(
        executor=StepExecutor(runner=runner, facts=facts, has_overlap=has_overlap),
        channel=channel,
        status=ShardStatus(),
        read_plan=plan_from_bytes,
        reader=AdapterReader(read_shift, SoloGroup()),
    )
    thread = threading.Thread(target=follower.run, name="follower")
    searches = [search(0, [5, 3, 8, 1, 9], request_id=1, first_block=0)]
    searches += [search(2, [7, 7], request_id=2, first_block=12, num_beams=2)]
    plain = admit(1, [6, 2], request_id=3, max_new=12)
    plain.block_ids[:] = [np.arange(20, 24, dtype="<u4").tobytes()]
    expected = []
    with Shard(facts=facts) as alone:
        plan = pb.Plan(number=1, admits=[*searches, plain])
        alone.engine.submit_plan(alone.session, plan_from_wire(plan), plan.SerializeToString())
        alone.run_to_end(0, 1, 2)
        expected = sorted(
            (found.slot, found.sequences[0].tolist()) for result in alone.results for found in result.found
        )
    token_reader = late_reader() if has_overlap else None
    with Shard(channel=channel, facts=facts, token_reader=token_reader) as shard:
        thread.start()
        plan = pb.Plan(number=1, admits=[*searches, plain])
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        tokens = shard.run_to_end(0, 1, 2)
        assert tokens[1] == greedy([6, 2], 12)
        # The slot of a search takes an ordinary request, whose blocks are those of the search.
        again = admit(0, [9, 4], request_id=4, max_new=6, num_blocks=4)
        plan = pb.Plan(number=2, admits=[again])
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        found = sorted((one.slot, one.sequences[0].tolist()) for result in shard.results for one in result.found)
        assert found == expected
        shard.results.clear()
        assert shard.run_to_end(0)[0] == greedy([9, 4], 6)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert sum(entry.apart is not None for entry in channel.entries) > 7
    assert any(entry.apart.copies for entry in channel.entries if entry.apart is not None)
    assert len(runner.batches) == len(shard.runner.batches)
    for mine, theirs in zip(shard.runner.batches, runner.batches, strict=True):
        for name in ("input_ids_T", "position_ids_T", "kv_places_T", "query_starts", "block_tables_RB", "slots_R"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
    assert runner.pool == shard.runner.pool


def test_a_pass_of_searches_of_several_ranks_without_memory_is_not_tried_again() -> None:
    error = torch.OutOfMemoryError("none left")
    facts = replace(FACTS, features=(*FACTS.features, "beams"))
    gate = threading.Semaphore(0)
    with Shard(channel=QueueChannel(), facts=facts, gate=gate) as shard:
        message = pb.Plan(number=1, admits=[search(0, [1, 2], request_id=1, first_block=0)])
        shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())
        shard.step()  # the prompt
        shard.runner.raises = error
        gate.release(10)
        while not isinstance(item := shard.next_item(), StreamEnd):
            pass
        assert item.reason is EndReason.FAILED
    assert shard.error is error
