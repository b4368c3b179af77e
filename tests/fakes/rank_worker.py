"""Ranks as processes, which run two prompts through each of several models and store the results.

The imports take seconds of each process, so one process makes them, and the ranks are forks of this process. One group
of ranks goes through all the models of a test file.
"""

import multiprocessing
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.draw_trial import DrawTrial
from textmill_shard.engine.follower import Follower
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_rope import rope_rule
from textmill_shard.engine.media_rows import OwnRows, ReceivedRows
from textmill_shard.engine.media_store import MediaStore
from textmill_shard.engine.rank_channel import GlooChannel, RankChannel, SoloChannel
from textmill_shard.engine.shared_channel import SharedChannel
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.layers.swapped_layers import FusedLinear, PackedLinear
from textmill_shard.layouts.native_decoder import NativeDecoder
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardOutput, MediaStep
from textmill_shard.model.memory import KvMemoryOptions, plan_kv_memory
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.step_size import plan_fitting_step
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.server.wire import plan_from_bytes, plan_from_wire
from textmill_shard.slots.plan import StepResult

from tests.fakes.divided_models import FAMILIES
from tests.fakes.formula_adapters import read_shift
from tests.fakes.late_tokens import late_reader
from tests.fakes.native_cases import native_cache_folder
from tests.fakes.paged_driver import PagedDriver
from tests.fakes.shard_facts import facts_of
from tests.fakes.step_engine import make_engine, make_part_sampling
from tests.fakes.step_harness import WAIT_S, Shard
from tests.zoo.image_engine import MEDIA_BYTES, image_facts, media_of, put_tensors


@dataclass(slots=True)
class RankSight:
    """The facts and results that one rank has of one model."""

    tokens: list[int]
    logits: torch.Tensor  # [steps, V]
    projected: torch.Tensor  # [1, V]
    weight_bytes: int
    num_blocks: int
    num_local_kv_heads: int
    layer_kinds: set[str]
    num_packed: int  # linears with packed weights
    exchanges: Counter[str]  # between the ranks, in a decode step
    num_shared_exchanges: int = 0  # through shared memory, in a decode step
    is_native: bool = False  # whether steps are native calls


@dataclass(slots=True)
class NarrowSight:
    """How one rank has planned its memory."""

    max_step_tokens: int
    num_blocks: int
    steps: list[int]  # tokens of each step that was tried


@dataclass(slots=True)
class ImageSight:
    """The results that one rank has of a model with images."""

    logits: torch.Tensor  # [tokens, V], of a prompt with an image in two chunks
    weight_bytes: int
    tokens: list[int]  # behind a prompt with the image, through the step loop; empty on other ranks than 0


def look_at_image(folder: Path, parallel: TensorParallel, *, is_native: bool = False) -> ImageSight:
    """Run a prompt whose image rank 0 has encoded."""
    cache = native_cache_folder() if is_native else None
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=4, native_cache_dir=cache)
    runner = load_model(options, lambda phase, share: None, parallel)
    rows_nD = torch.empty(16, 64)
    if parallel.rank == 0:
        pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        rows_nD = runner.encode_media({"pixel_values": pixels}).rows_nD
    if parallel.world_size > 1:
        dist.broadcast(rows_nD, src=0)
    runner.allocate_kv(6)
    ids = torch.tensor([5, 99, 31, *[0] * 16, 7, 250])
    places = torch.arange(3, 19)
    logits = []
    for start, stop in ((0, 12), (12, len(ids))):
        inside = (places >= start) & (places < stop)
        row = SyntheticRow(
            ids[start:stop],
            range(6),
            start,
            num_logits=stop - start,
            media=MediaStep(places[inside] - start, rows_nD[inside]),
        )
        logits.append(runner.forward(synthetic_batch([row], block_size=4)).logits_NV)
    return ImageSight(
        logits=torch.cat(logits),
        weight_bytes=runner.facts.weight_bytes,
        tokens=write_behind_image(runner, parallel, ids.tolist()),
    )


def channel_of(parallel: TensorParallel) -> RankChannel:
    if parallel.world_size == 1:
        return SoloChannel()
    return GlooChannel() if parallel.entry_room is None else SharedChannel(parallel.entry_room)


NUM_WRITTEN = 6


def write_behind_image(runner: ModelRunner, parallel: TensorParallel, ids: list[int]) -> list[int]:
    """Run a prompt with an image at the tokens 3 to 18 through the step loop, of which every rank has its part."""
    facts = image_facts(runner)
    media = media_of(runner)
    runner.allocate_kv(facts.num_blocks)
    channel = channel_of(parallel)
    if parallel.rank:
        rows = ReceivedRows(media, channel, dtype=runner.dtype, device=runner.device)
        executor = StepExecutor(
            runner=runner, facts=facts, media=rows, rope=rope_rule(runner), vocabulary=runner.vocabulary
        )
        reader = AdapterReader(read_shift, SoloGroup())
        sampler = Sampler(num_slots=facts.num_slots, device=runner.device)
        sampling = make_part_sampling(sampler, facts, channel, runner.vocabulary)
        Follower(
            executor=executor,
            channel=channel,
            status=ShardStatus(),
            read_plan=plan_from_bytes,
            reader=reader,
            sampling=sampling,
        ).run()
        return []
    store = MediaStore(max_bytes=MEDIA_BYTES, row_bytes=media.row_bytes)
    desk = MediaDesk(store, media, runner.encode_media, device=runner.device, runs_beside_steps=True)
    executor = StepExecutor(
        runner=runner,
        facts=facts,
        media=OwnRows(store, channel),
        rope=rope_rule(runner),
        vocabulary=runner.vocabulary,
    )
    engine = make_engine(
        executor, facts, status=ShardStatus(), channel=channel, media=desk, vocabulary=runner.vocabulary
    )
    thread = threading.Thread(target=engine.run)
    thread.start()
    session = engine.open_session()
    assert session is not None
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    put_tensors(desk, bytes(16), {"pixel_values": pixels}, num_rows=16)
    plan = pb.Plan(
        number=1,
        admits=[
            pb.Admit(
                request_id=1,
                slot=0,
                prompt_ids=np.array(ids, dtype="<u4").tobytes(),
                block_ids=[np.arange(8, dtype="<u4").tobytes()],
                max_new_tokens=NUM_WRITTEN,
                ignore_eos=True,
                sampling=pb.Sampling(temperature=1.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.0),
                media=[pb.MediaSpan(digest=bytes(16), start=3, num_tokens=16)],
            )
        ],
        budget=pb.Budget(max_step_tokens=8, max_prefill_tokens=8, max_chunk_tokens=8),
    )
    engine.submit_plan(session, plan_from_wire(plan), plan.SerializeToString())
    tokens: list[int] = []
    while len(tokens) < NUM_WRITTEN:
        result = session.next_item(WAIT_S)
        assert isinstance(result, StepResult), result
        assert not result.errors, result.errors
        tokens += result.tokens.tolist()
    engine.stop()
    thread.join(WAIT_S)
    return tokens


QWEN3_VL = "qwen3_vl"
IMAGES = "llava"  # the name of the model with images
NATIVE = ", native"  # stands behind the name of a model that runs with native kernels
NATIVE_MODELS = ("llama", "tied", "biases")
SHARED = ", shared memory"  # stands behind the name of a model whose ranks share memory, with native kernels
SHARED_MODELS = ("llama", "tied", "biases", "one-kv-head", "small-table", "tied-small-table", "qwen3")
EIGHT_BITS = ", 8 bits"  # stands behind the name of a model whose keys and values have 8 bits
HEAD_SCALES = "head-scales"  # a llama with scales for its keys and values, another for each head
EIGHT_BITS_MODELS = ("llama", "one-kv-head", HEAD_SCALES)
KV_TYPE = "fp8_e4m3fn"
LOOP = ", step loop"  # stands behind the name of a model that runs in the step loops of the ranks
LOOP_MODELS = ("llama", "one-kv-head")
WHOLE_HEAD = "tied-small-table"  # each rank computes all logits


def look(folder: Path, parallel: TensorParallel, *, is_native: bool = False, kv_type: str = "auto") -> RankSight:
    cache = native_cache_folder() if is_native else None
    options = LoadOptions(
        model_dir=folder, dtype="float32", block_size=4, native_cache_dir=cache, kv_cache_dtype=kv_type
    )
    runner = load_model(options, lambda phase, share: None, parallel)
    # The ranks ask for different sizes, of which the smallest decides.
    kv_cache_bytes = (20 + parallel.rank) * runner.kv_bytes_per_block()
    plan = plan_kv_memory(runner, KvMemoryOptions(max_step_tokens=32, num_slots=4, kv_cache_bytes=kv_cache_bytes))
    driver = PagedDriver(runner, num_blocks=plan.num_blocks)
    sequence = driver.start([5, 99, 31, 7, 250, 12, 64, 3, 118, 77, 201], max_new_tokens=6)
    neighbour = driver.start([9, 8, 7], max_new_tokens=6)
    driver.step([(sequence, 6), (neighbour, 3)])
    driver.step([(sequence, 5)])
    driver.decode_greedily([sequence, neighbour], 6)
    before = 0 if parallel.room is None else parallel.room.num_exchanges
    with _counted() as exchanges:
        runner.forward(driver.build([(sequence, 1), (neighbour, 1)]))
    num_shared = 0 if parallel.room is None else parallel.room.num_exchanges - before
    hidden_TD = runner.forward(driver.build([(sequence, 1)]), wants_hidden=True).hidden_TD
    assert hidden_TD is not None
    return RankSight(
        tokens=sequence.tokens,
        logits=torch.stack([sequence.logits[position] for position in sorted(sequence.logits)]),
        projected=runner.project(hidden_TD),
        weight_bytes=runner.facts.weight_bytes,
        num_blocks=plan.num_blocks,
        num_local_kv_heads=runner.facts.kv_specs[0].num_local_kv_heads,
        layer_kinds={type(module).__name__ for module in runner.modules()},
        num_packed=sum(isinstance(module, (PackedLinear, FusedLinear)) for module in runner.modules()),
        exchanges=exchanges,
        num_shared_exchanges=num_shared,
        is_native=isinstance(runner.adapters, NativeDecoder),
    )


NARROW = ", narrow"  # stands behind the name of a model for whose largest step the last rank has no memory
NARROW_MODELS = ("llama", "tied-small-table")  # whose ranks share a vocabulary, and whose ranks have it whole
NARROW_STEP_TOKENS = 512
MOST_NARROW_TOKENS = 200


def plan_narrow(folder: Path, parallel: TensorParallel) -> NarrowSight:
    """Plan the memory where the last rank runs out of memory within steps of more than `MOST_NARROW_TOKENS` tokens."""
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=4, num_slots=4)
    runner = load_model(options, lambda phase, share: None, parallel)
    steps: list[int] = []
    *_, last = (module for module in runner.modules() if "Norm" in type(module).__name__)
    norm = last.forward

    def forward(x: torch.Tensor, *args: Any) -> Any:
        steps.append(x.shape[-2])
        if parallel.rank == parallel.world_size - 1 and x.shape[-2] > MOST_NARROW_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return norm(x, *args)

    last.forward = forward

    def draws() -> Callable[[ForwardOutput], None]:
        return DrawTrial(
            num_slots=4,
            vocab_size=runner.facts.vocab_size,
            longest_text=40,
            device=runner.device,
            scanner=None,
            vocabulary=runner.vocabulary,
            project=runner.project if runner.vocabulary is None else runner.project_part,
        ).sample

    limits = KvMemoryOptions(max_step_tokens=NARROW_STEP_TOKENS, num_slots=4, memory_fraction=0.01)
    plan, kept = plan_fitting_step(runner, limits, is_fixed=False, draws=draws)
    return NarrowSight(kept.max_step_tokens, plan.num_blocks, steps)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count the calls by which ranks exchange tensors."""
    counts: Counter[str] = Counter()
    before = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor", "broadcast")}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return before[name](*args, **kwargs)

        return call

    for name in before:
        setattr(dist, name, counting(name))
    try:
        yield counts
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


@dataclass(slots=True)
class LoopSight:
    """What the step loop of rank 0 tells of its requests, by slot. Log-probabilities are in the order of the tokens."""

    tokens: dict[int, list[int]]
    logprobs: dict[int, list[float]]
    top_ids: dict[int, list[list[int]]]
    top_logprobs: dict[int, list[float]]
    prompt_logprobs: dict[int, list[float]]
    prompt_top_ids: dict[int, list[int]]


def little_endian(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


# Every option that changes scores or draws. The candidates are few, so that many draws need more of their rows.
LOOP_SAMPLINGS = (
    pb.Sampling(),
    pb.Sampling(do_sample=True, seed=5),
    pb.Sampling(do_sample=True, seed=6, presence_penalty=1.0, frequency_penalty=0.2),
    pb.Sampling(do_sample=True, seed=7, top_k=3),
    pb.Sampling(do_sample=True, seed=8, top_p=0.4),
    pb.Sampling(do_sample=True, seed=9, typical_p=0.5),
    pb.Sampling(do_sample=True, seed=10, min_p=0.3, temperature=0.2),
    pb.Sampling(repetition_penalty=1.7),
    pb.Sampling(logit_bias_ids=little_endian(3, 250), logit_bias_values=np.array([0.2, 0.4], dtype="<f4").tobytes()),
    pb.Sampling(do_sample=True, seed=11, dry_multiplier=1.0, dry_base=1.5, dry_allowed_length=1),
    pb.Sampling(do_sample=True, seed=12, allowed_ids=little_endian(4, 90, 200, 256)),
    pb.Sampling(bad_sequences=[little_endian(5), little_endian(6, 7)], no_repeat_ngram_size=1),
)
NUM_LOOP_SLOTS = len(LOOP_SAMPLINGS)


def loop_admits() -> list[pb.Admit]:
    admits = []
    for slot, sampling in enumerate(LOOP_SAMPLINGS):
        neutral = pb.Sampling(temperature=2.0, top_p=1.0, typical_p=1.0, repetition_penalty=1.0)
        neutral.MergeFrom(sampling)
        made = pb.Admit(
            request_id=slot,
            slot=slot,
            prompt_ids=little_endian(*range(7 * slot, 7 * slot + 3 + 2 * slot)),
            block_ids=[little_endian(*range(16 * slot, 16 * slot + 16))],
            max_new_tokens=24 - slot,
            min_new_tokens=9,
            ignore_eos=slot % 3 > 0,
            logprobs=slot % 2 == 0,
            top_n_tokens=slot % 4,
            watermark=slot == 4,
            sampling=neutral,
        )
        if slot % 5 == 1:
            made.prompt_logprobs_from, made.prompt_top_n_tokens = 1, slot % 3
        admits.append(made)
    return admits


def run_loop(folder: Path, parallel: TensorParallel, *, has_overlap: bool) -> LoopSight | None:
    """Run requests of many kinds through the step loop of each rank, and return what rank 0 tells of them.

    With overlap the tokens reach the host of rank 0 after random times, and the hosts of the other ranks never.
    """
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=4)
    runner = load_model(options, lambda phase, share: None, parallel)
    num_blocks = 16 * NUM_LOOP_SLOTS
    runner.allocate_kv(num_blocks)
    facts = facts_of(
        runner,
        block_size=4,
        num_blocks=num_blocks,
        num_slots=NUM_LOOP_SLOTS,
        max_step_tokens=32,
        eos_token_ids=(),
        features=("prompt_logprobs",),
    )
    channel = channel_of(parallel)
    sampler = Sampler(num_slots=NUM_LOOP_SLOTS, device=runner.device, num_candidates=8)
    if parallel.rank:
        Follower(
            executor=StepExecutor(runner=runner, facts=facts, has_overlap=has_overlap, vocabulary=runner.vocabulary),
            channel=channel,
            status=ShardStatus(),
            read_plan=plan_from_bytes,
            reader=AdapterReader(read_shift, SoloGroup()),
            sampling=make_part_sampling(sampler, facts, channel, runner.vocabulary),
        ).run()
        return None
    budget = pb.Budget(max_step_tokens=32, max_prefill_tokens=9, max_chunk_tokens=5)
    message = pb.Plan(number=1, admits=loop_admits(), budget=budget)
    shard = Shard(
        facts=facts,
        runner=runner,
        channel=channel,
        sampler=sampler,
        token_reader=late_reader(parallel.world_size) if has_overlap else None,
        vocabulary=runner.vocabulary,
    )
    with shard:
        shard.engine.submit_plan(shard.session, plan_from_wire(message), message.SerializeToString())
        tokens = shard.run_to_end(*range(NUM_LOOP_SLOTS))
    assert shard.error is None, shard.error
    return sight_of(shard.results, tokens)


def sight_of(results: Sequence[StepResult], tokens: dict[int, list[int]]) -> LoopSight:
    sight = LoopSight(tokens, {}, {}, {}, {}, {})
    for result in results:
        assert not result.errors, result.errors
        slots = result.slots.tolist()
        if result.logprobs is not None:
            for slot, value in zip(slots, result.logprobs.tolist(), strict=True):
                if not np.isnan(value):
                    sight.logprobs.setdefault(slot, []).append(value)
        for top in result.top_tokens:
            sight.top_ids.setdefault(slots[top.row], []).append(top.ids.tolist())
            sight.top_logprobs.setdefault(slots[top.row], []).extend(top.logprobs.tolist())
        for piece in result.prompt_logprobs:
            sight.prompt_logprobs.setdefault(piece.slot, []).extend(piece.logprobs.tolist())
            sight.prompt_top_ids.setdefault(piece.slot, []).extend(piece.top_ids.tolist())
    return sight


FOUR_RANKS_MODELS = (
    "llama",
    "one-kv-head",
    HEAD_SCALES,
    "qwen3",
    *FAMILIES,
)  # two ranks share a key/value head, or all have one
RANKS_TIMEOUT_S = 240


def run_rank(rank: int, world_size: int, port: int, out: Path, folders: Sequence[Path]) -> None:
    """Store what one rank finds, by the name of the model."""
    torch.set_num_threads(1)
    sharing = TensorParallel.join(
        rank=rank,
        world_size=world_size,
        master_addr="127.0.0.1",
        master_port=port,
        device="cpu",
        native_cache_dir=native_cache_folder(),
    )
    parallel = replace(sharing, room=None, entry_room=None)  # exchanges over sockets
    sights: dict[str, RankSight | ImageSight | LoopSight | NarrowSight | None] = {}
    for folder in folders:
        if folder.name == IMAGES:
            sights[IMAGES] = look_at_image(folder, parallel)
            if sharing.room is not None:
                sights[IMAGES + SHARED] = look_at_image(folder, sharing, is_native=True)
            continue
        sights[folder.name] = look(folder, parallel)
        if folder.name in (*FAMILIES, QWEN3_VL) and sharing.room is not None and world_size == 2:
            sights[folder.name + SHARED] = look(folder, sharing, is_native=True)
        if folder.name in NARROW_MODELS and world_size == 2:
            sights[folder.name + NARROW] = plan_narrow(folder, parallel)
        if folder.name in NATIVE_MODELS and world_size == 2:
            sights[folder.name + NATIVE] = look(folder, parallel, is_native=True)
        if folder.name in EIGHT_BITS_MODELS:
            sights[folder.name + EIGHT_BITS] = look(folder, parallel, kv_type=KV_TYPE)
        if folder.name in LOOP_MODELS or (folder.name == WHOLE_HEAD and world_size == 2):
            sights[folder.name + LOOP] = run_loop(folder, parallel, has_overlap=True)
        if sharing.room is not None and folder.name in SHARED_MODELS:
            if world_size == 2:
                sights[folder.name + SHARED] = look(folder, sharing, is_native=True)
            if folder.name in LOOP_MODELS:
                sights[folder.name + LOOP + SHARED] = run_loop(folder, sharing, has_overlap=False)
    torch.save(sights, out)
    sharing.leave()


def run_ranks(world_size: int, scratch: Path, folders: Sequence[Path]) -> None:
    """Fork a group of ranks, which store their findings in `scratch`. Raises RuntimeError where a rank fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    forks = multiprocessing.get_context("fork")
    ranks = [
        forks.Process(target=run_rank, args=(rank, world_size, port, scratch / sight_file(rank, world_size), folders))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    waiting = {process.sentinel: process for process in ranks}
    try:
        while waiting:
            ended = [waiting.pop(sentinel) for sentinel in wait(list(waiting), RANKS_TIMEOUT_S)]
            if not ended or any(process.exitcode for process in ended):
                codes = [process.exitcode for process in ranks]
                raise RuntimeError(f"the ranks of {world_size} ended with {codes}")
    finally:
        for process in waiting.values():
            process.kill()


def sight_file(rank: int, world_size: int) -> str:
    """Return the name of the file in which a rank stores its findings."""
    return f"{rank}-of-{world_size}.pt"


def main() -> None:
    """Run two ranks and then four, with the arguments folder of the results and model folders."""
    scratch, *folders = map(Path, sys.argv[1:])
    run_ranks(2, scratch, folders)
    run_ranks(4, scratch, [folder for folder in folders if folder.name in FOUR_RANKS_MODELS])
