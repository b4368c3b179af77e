"""One rank from start to end: the socket, then the model, then the step loop until a signal or a fault."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from textmill_shard.adapters.reader import AdapterLimits, read_adapter
from textmill_shard.device import DeviceError, pick_device, why_no_gpu
from textmill_shard.distributed.gpu_links import link_warnings
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.adapter_desk import AdapterDesk
from textmill_shard.engine.adapter_reader import AdapterReader, GlooGroup, RankGroup, SoloGroup
from textmill_shard.engine.draw_trial import DrawTrial
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.follower import Follower
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_rope import rope_rule
from textmill_shard.engine.media_rows import OwnRows, ReceivedRows, RowSource
from textmill_shard.engine.media_store import MediaStore
from textmill_shard.engine.part_desk import PartDesk
from textmill_shard.engine.part_sampling import PartSampling
from textmill_shard.engine.rank_channel import GlooChannel, RankChannel, SoloChannel
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.shared_channel import SharedChannel
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.errors import WRONG_SETTING, exit_code_of
from textmill_shard.gpu_steps import graph_trial, record_graphs, steps_overlap
from textmill_shard.grammar.matcher import MatcherFactory, load_matcher_factory
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.heap import trim_heap
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loop_thread import LoopThread
from textmill_shard.model.adapter import PreparedAdapter
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_recorder import CudaGraphRecorder
from textmill_shard.model.kv_allocation import allocate_planned_kv
from textmill_shard.model.kv_pool import UNBOUNDED_TOKENS
from textmill_shard.model.media import MediaFacts
from textmill_shard.model.memory import DrawTrials, KvMemoryOptions
from textmill_shard.model.runner import ModelFacts, ModelRunner
from textmill_shard.model.step_size import plan_fitting_step
from textmill_shard.row_start import start_rows
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_scan import DeviceRowScanner, NativeRowScanner, RowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.watermark import WatermarkKey
from textmill_shard.server.row_service import RowService
from textmill_shard.server.server import LoadedShard, ShardService, start_server
from textmill_shard.server.tcp import TcpPlace, TlsFiles, TlsFilesError
from textmill_shard.server.wire import plan_from_bytes
from textmill_shard.settings import ServeSettings
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import ShardFacts
from textmill_shard.slots.plan_check import BEAMS, LAYOUTS_WITHOUT_PREFIXES
from textmill_shard.tasks.row_loop import RowLoop

log = logging.getLogger(__name__)

DEFAULT_MEDIA_CACHE_BYTES = {"cpu": 256 * 1024**2, "cuda": 1024**3}
STOP_GRACE_S = 10.0  # time for the step under way to end
STREAM_GRACE_S = 1.0  # time for the last messages of the stream


class _Stopped(BaseException):
    """A signal asked the process to end."""


def serve(settings: ServeSettings) -> int:
    """Serve until SIGTERM or SIGINT, and return 0, or until a fault, and return its exit code (`exit_code_of`)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stopped)
    status = ShardStatus()
    service: ShardService | RowService = RowService(status) if settings.computes_rows else ShardService(status)
    try:
        server = start_server(service, settings.uds_path, _tcp_place(settings))
    except TlsFilesError as error:
        log.critical("%s", error)
        return WRONG_SETTING
    log.info("listening", extra={"uds_path": str(settings.uds_path), "address": settings.shard_address})
    work: Engine | RowLoop | None = None
    loop: LoopThread | None = None
    code = 0
    try:
        torch.set_num_threads(settings.num_threads)
        device = pick_device(
            settings.device,
            number=settings.replica * settings.local_world_size + settings.local_rank,
            num_shards=settings.local_world_size * settings.num_replicas,
        )
        has_reason = settings.device == "auto" and device == "cpu" and torch.version.cuda is not None
        log.info("computing", extra={"device": device, **({"no_gpu": why_no_gpu()} if has_reason else {})})
        if isinstance(service, RowService):
            started = start_rows(settings, device, status)
            work = started.loop
            loop = LoopThread(work.run, device)
            _freeze()
            service.set_loaded(started.facts, work, started.reader)
            log.info("ready", extra={"task": settings.task, "max_batch_tokens": started.facts.max_batch_tokens})
        else:
            loaded, run = _start_steps(settings, device, status)
            work = loaded.engine
            loop = LoopThread(run, device)
            _freeze()
            service.set_loaded(loaded)
            log.info("ready", extra={"num_blocks": loaded.facts.num_blocks, "num_slots": loaded.facts.num_slots})
        loop.done.wait()
        if loop.error is not None:
            raise loop.error
    except _Stopped:
        log.info("stopping")
        if work is not None and loop is not None:
            work.stop()
            loop.done.wait(STOP_GRACE_S)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        status.report_failure(reason)
        log.debug("what led to it", exc_info=error)
        log.critical("rank %d of %d ends: %s", settings.rank, settings.world_size, reason)
        code = WRONG_SETTING if isinstance(error, DeviceError) else exit_code_of(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    server.stop(STREAM_GRACE_S).wait(STREAM_GRACE_S + 1.0)
    settings.uds_path.unlink(missing_ok=True)
    if settings.world_size > 1 or code:
        # The process ends at once, because a thread may sit in a collective call that will never end.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _start_steps(settings: ServeSettings, device: str, status: ShardStatus) -> tuple[LoadedShard, Callable[[], None]]:
    """Return the loaded model, with an engine on rank 0, and the body of this rank's step loop."""
    parallel = _join_ranks(settings, device)
    runner, facts, encode_s_per_element = _load(settings, device, parallel, status)
    matchers = _load_matchers(settings, facts) if settings.rank == 0 else None
    if matchers is not None:
        facts = replace(facts, features=(*facts.features, "grammar"))
    is_alone = settings.world_size == 1
    channel = _channel(parallel)
    desk = _media_desk(runner, facts, status, encode_s_per_element) if settings.rank == 0 else None
    executor = StepExecutor(
        runner=runner,
        facts=facts,
        media=_row_source(runner, desk, channel),
        rope=rope_rule(runner),
        has_overlap=steps_overlap(settings, runner),
        vocabulary=runner.vocabulary,
    )
    reader = _adapter_reader(settings, runner, facts, SoloGroup() if is_alone else GlooGroup(settings.world_size))
    finish_rules = FinishRules(facts.eos_token_ids)
    sampler = Sampler(
        num_slots=facts.num_slots,
        device=executor.device,
        watermark=WatermarkKey(gamma=settings.watermark_gamma, delta=settings.watermark_delta),
        scanner=_scanner(runner),
    )
    parts = None if runner.vocabulary is None else PartSampler(sampler, runner.vocabulary)
    if settings.rank != 0:
        sampling = None
        if parts is not None:
            sampling = PartSampling(
                sampler=sampler,
                parts=parts,
                finish_rules=finish_rules,
                channel=channel,
                vocab_size=facts.vocab_size,
            )
        follower = Follower(
            executor=executor,
            channel=channel,
            status=status,
            read_plan=plan_from_bytes,
            reader=reader,
            sampling=sampling,
        )
        return LoadedShard(facts=facts, engine=None, adapter_digests=lambda: executor.adapter_digests), follower.run
    grammars = GrammarSlots(matchers, finish_rules)
    engine = Engine(
        executor=executor,
        row_sampler=RowSampler(
            sampler=sampler,
            finish_rules=finish_rules,
            grammars=grammars,
            has_overlap=executor.feed is not None,
            parts=None if parts is None else PartDesk(parts, channel),
        ),
        grammars=grammars,
        finish_rules=finish_rules,
        channel=channel,
        adapters=AdapterDesk(executor, reader, max_bytes=facts.adapter_bytes),
        status=status,
        lease_s=settings.router_lease_s,
        media=desk,
        reader=None if executor.feed is None else TokenReader(executor.device),
    )
    return LoadedShard(facts=facts, engine=engine, adapter_digests=lambda: executor.adapter_digests), engine.run


def _freeze() -> None:
    """Keep the loaded objects for ever, so that later collections need not walk through them."""
    gc.collect()
    trim_heap()
    gc.freeze()


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _tcp_place(settings: ServeSettings) -> TcpPlace | None:
    certificate, key, authority = settings.shard_tls_cert, settings.shard_tls_key, settings.shard_tls_ca
    if settings.shard_address is None or certificate is None or key is None or authority is None:
        return None
    return TcpPlace(settings.shard_address, TlsFiles(Path(certificate), Path(key), Path(authority)))


def _join_ranks(settings: ServeSettings, device: str) -> TensorParallel:
    if settings.world_size == 1:
        return TensorParallel()
    assert settings.master_port is not None
    if device.startswith("cuda") and settings.local_rank == 0:
        first = settings.replica * settings.local_world_size
        for sentence in link_warnings(range(first, first + settings.local_world_size)):
            log.warning(sentence)
    return TensorParallel.join(
        rank=settings.rank,
        world_size=settings.world_size,
        master_addr=settings.master_addr,
        master_port=settings.master_port,
        device=device,
        native_cache_dir=None if settings.no_native_kernels else settings.native_cache_dir,
    )


def _channel(parallel: TensorParallel) -> RankChannel:
    if parallel.world_size == 1:
        return SoloChannel()
    return GlooChannel() if parallel.entry_room is None else SharedChannel(parallel.entry_room)


def _load(
    settings: ServeSettings, device: str, parallel: TensorParallel, status: ShardStatus
) -> tuple[ModelRunner, ShardFacts, float]:
    """Return the runner with its blocks, the facts, and the seconds of the tower for each element of an image."""
    options = LoadOptions(
        model_dir=settings.model_dir,
        dtype=settings.dtype,
        device=device,
        block_size=settings.block_size,
        num_slots=settings.num_slots,
        native_cache_dir=None if settings.no_native_kernels else settings.native_cache_dir,
        num_threads=settings.num_threads,
        attention_backend=settings.attention_backend,
        kv_cache_dtype=settings.kv_cache_dtype,
        native_decoder=not settings.no_native_decoder,
        disabled_swaps=settings.disable_swaps,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        text_only=settings.text_only,
    )
    runner = load_model(options, status.report_loading, parallel)
    if runner.has_own_threads:
        # With a 135M model on 2 cores torch's second thread, waiting awake after each operation of the sampler, costs
        # a step 3 ms and more, and saves the sampler 0.6 ms at 8 rows and 3 ms at 32.
        torch.set_num_threads(1)
    status.report_loading("kv_pool", 0.0)
    max_step_tokens = settings.step_tokens(has_encoder=runner.facts.layout == "encoder_decoder")
    recorder = CudaGraphRecorder()
    memory, options_kept = plan_fitting_step(
        runner,
        KvMemoryOptions(
            max_step_tokens=max_step_tokens,
            num_slots=settings.num_slots,
            kv_cache_bytes=settings.kv_cache_bytes,
            memory_fraction=settings.memory_fraction,
            max_kv_tokens=settings.max_kv_tokens,
            adapter_bytes=settings.lora_memory_bytes,
            media_bytes=_media_cache_bytes(settings, runner),
            num_sharing=settings.local_world_size * settings.num_replicas,
            graphs=graph_trial(settings, runner, recorder),
        ),
        # More bytes for keys and values are not to be had from a smaller step.
        is_fixed=settings.max_step_tokens is not None or settings.kv_cache_bytes is not None,
        draws=_draw_trials(settings, runner) if runner.device.type == "cuda" else None,
    )
    max_step_tokens = options_kept.max_step_tokens
    status.progress.measure_warm_up(memory.step_s)
    memory = allocate_planned_kv(runner, memory)
    num_blocks = memory.num_blocks
    record_graphs(
        settings,
        runner,
        recorder,
        lambda share: status.report_loading("warmup", share),
        num_blocks=num_blocks,
        has_adapters=memory.adapter_bytes > 0,
    )
    facts, media = runner.facts, runner.media
    shard_facts = ShardFacts(
        model_id=settings.model_id,
        model_sha=settings.model_sha,
        model_type=facts.model_type,
        dtype=facts.dtype,
        device=facts.device,
        rank=settings.rank,
        world_size=settings.world_size,
        block_size=settings.block_size,
        num_blocks=num_blocks,
        num_slots=settings.num_slots,
        max_step_tokens=max_step_tokens,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        max_model_tokens=facts.max_model_tokens,
        layout=facts.layout,
        features=features_of(facts, media),
        tokenizer_digest=facts.tokenizer_digest,
        weight_bytes=facts.weight_bytes,
        kv_bytes=memory.kv_bytes,
        rope_border=facts.rope_border or 0,
        decoder_prompt_ids=facts.decoder_prompt_ids,
        max_encoder_tokens=facts.max_encoder_tokens,
        adapter_bytes=memory.adapter_bytes,
        max_adapter_rank=settings.max_lora_rank,
        media_kinds=() if media is None else media.kinds,
        media_cache_bytes=_media_cache_bytes(settings, runner),
        media_row_bytes=0 if media is None else media.row_bytes,
        uncut_spans=media is not None and media.uncut_spans,
        uncut_prompts=media is not None and media.is_prompt_span,
        kv_dtype=runner.kv_type,
    )
    return runner, shard_facts, memory.encode_s_per_element


def _draw_trials(settings: ServeSettings, runner: ModelRunner) -> DrawTrials:
    """Return what samples rows as the step loop will do."""

    def make() -> Callable[[ForwardOutput], None]:
        return DrawTrial(
            num_slots=settings.num_slots,
            vocab_size=runner.facts.vocab_size,
            longest_text=runner.facts.max_model_tokens or UNBOUNDED_TOKENS,
            device=runner.device,
            scanner=_scanner(runner),
            vocabulary=runner.vocabulary,
            project=runner.project if runner.vocabulary is None else runner.project_part,
        ).sample

    return make


def features_of(facts: ModelFacts, media: MediaFacts | None = None) -> tuple[str, ...]:
    """Return what the model can do, as the router reads it in the facts of the shard."""
    # The blocks of a prefix do not hold its state rows, and an encoder, or a prompt whose tokens see one another, also
    # reads the tokens after a prefix.
    reads_behind = media is not None and media.is_prompt_span
    prefix = () if facts.layout in LAYOUTS_WITHOUT_PREFIXES or reads_behind else ("prefix_cache",)
    return (*prefix, *(("prompt_logprobs",) if facts.can_project else ()), BEAMS)


def _media_cache_bytes(settings: ServeSettings, runner: ModelRunner) -> int:
    if runner.media is None:
        return 0
    return settings.media_cache_bytes or DEFAULT_MEDIA_CACHE_BYTES[runner.device.type]


def _media_desk(
    runner: ModelRunner, facts: ShardFacts, status: ShardStatus, encode_s_per_element: float
) -> MediaDesk | None:
    if runner.media is None:
        return None
    store = MediaStore(
        max_bytes=facts.media_cache_bytes,
        row_bytes=facts.media_row_bytes,
        on_change=status.report_media_bytes,
    )
    return MediaDesk(
        store,
        runner.media,
        runner.encode_media,
        device=runner.device,
        runs_beside_steps=runner.device.type == "cpu",
        on_encoded=status.report_media_encode,
        encode_s_per_element=encode_s_per_element,
    )


def _row_source(runner: ModelRunner, desk: MediaDesk | None, channel: RankChannel) -> RowSource | None:
    if desk is not None:
        return OwnRows(desk.store, channel)
    if runner.media is None:
        return None
    return ReceivedRows(runner.media, channel, dtype=runner.dtype, device=runner.device)


def _load_matchers(settings: ServeSettings, facts: ShardFacts) -> MatcherFactory | None:
    matchers, reason = load_matcher_factory(
        settings.model_dir, vocab_size=facts.vocab_size, eos_token_ids=facts.eos_token_ids
    )
    if matchers is None:
        log.warning("requests can have no grammar", extra={"reason": reason})
    return matchers


def _scanner(runner: ModelRunner) -> RowScanner | None:
    """Return the scanner of the kernels that the model runs by, or None for the sampler's own."""
    if runner.kernels is not None:
        return NativeRowScanner(runner.kernels)
    return None if runner.device_scans is None else DeviceRowScanner(runner.device_scans)


def _adapter_reader(settings: ServeSettings, runner: ModelRunner, facts: ShardFacts, group: RankGroup) -> AdapterReader:
    limits = AdapterLimits(max_rank=settings.max_lora_rank, max_bytes=facts.adapter_bytes, base_model=settings.model_id)

    def read(folder: Path) -> PreparedAdapter:
        return runner.adapters.prepare(read_adapter(folder, runner.targets, limits))

    return AdapterReader(read, group, device=str(runner.device))
