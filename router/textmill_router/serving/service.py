"""The objects that all endpoints share: settings, permits, metrics and, once the model is ready, the engine."""

import asyncio
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from textmill_router.chat.answer_form import FormatFlags
from textmill_router.chat.markup_tokens import markup_texts
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplates
from textmill_router.engine.engine_loop import NewWatcher, no_watcher
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.row_engine import RowEngine
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.engine.status import LOADING_PHASES, EnginePhase
from textmill_router.errors import ModelLoading
from textmill_router.grammar.compiler import GrammarCompiler
from textmill_router.health.health import Health
from textmill_router.health.states import HealthFacts, Start
from textmill_router.http.event_stream import OpenStreams
from textmill_router.media.url_fetch import UrlFetcher
from textmill_router.metrics.adapter_metrics import AdapterNumbers, AllAdapters
from textmill_router.metrics.metrics import CacheNumbers, EngineNumbers, Metrics, ReplicaNumbers, RowNumbers
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Budget
from textmill_router.scheduler.stats import AdapterLoad
from textmill_router.serving.access import Access
from textmill_router.serving.adapters import Adapters
from textmill_router.serving.image_start import open_images
from textmill_router.serving.limits import Limits, max_prefill_tokens, resolve_limits
from textmill_router.serving.loading_pace import LoadingPace
from textmill_router.serving.permits import Permits
from textmill_router.serving.prompt_images import PromptImages
from textmill_router.serving.response_cache import ResponseCache
from textmill_router.serving.row_backend import RowBackend
from textmill_router.settings import Settings
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.names import is_file_task, is_row_task, is_text_task
from textmill_router.tasks.task_facts import TaskFacts
from textmill_router.text.sequence_breakers import SequenceBreakers
from textmill_router.text.tokenization import Tokenizer
from textmill_router.tracing.call_trace import CallTracer

MAX_TEXTS, MAX_FILES = 1024, 32  # of one call of a task
CHUNKS_PER_PREFILL = 4  # so many prompts share the prefill tokens of a step before one prompt may take more
PAYLOAD_BYTES = 2_000_000  # of a body without images
_MAX_ESTIMATE_S = 600.0
_START_OF = {
    EnginePhase.CONFIG: Start.LOADING,
    EnginePhase.WEIGHTS: Start.LOADING,
    EnginePhase.WARMUP: Start.WARMING,
    EnginePhase.KV_POOL: Start.WARMING,
    EnginePhase.READY: Start.WARMING,  # the shards are ready, and the router makes its tables
}


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine that has been ready at least once, and the objects and limits that follow from its model."""

    engine: ReplicaSet
    tokenizer: Tokenizer
    facts: ShardFacts
    limits: Limits
    chat_templates: ChatTemplates
    role_safety: RoleSafety
    grammars: GrammarCompiler
    breakers: SequenceBreakers
    images: PromptImages | None = None  # None: the model takes text only

    @property
    def takes_images(self) -> bool:
        return self.images is not None


class Service:
    """The shared objects of one server.

    The service is made before anything is loaded, and its making raises SettingsError for a key file that cannot be
    used. `tracer` makes the spans of calls; None where there are no traces. `new_watcher` makes those who watch the
    prefix index, and `fetcher` gets images by their URLs. `attach` is called when the engine looks for its shard, and
    `become_ready` once when the shard is ready.
    """

    def __init__(
        self,
        settings: Settings,
        tracer: CallTracer | None = None,
        new_watcher: NewWatcher = no_watcher,
        fetcher: UrlFetcher | None = None,
    ) -> None:
        self.settings = settings
        self.fetcher = UrlFetcher(settings.image_domains) if fetcher is None else fetcher
        self.tracer = tracer
        self.new_watcher = new_watcher
        self.access = Access(settings)
        self.adapters = Adapters(settings)
        self.format_flags = FormatFlags(settings.tool_call_parser, settings.reasoning_parser)
        self._settled = asyncio.Event()  # set when the model is ready or the server leaves
        self.permits = self._make_permits()
        self.file_bytes = Permits(  # one permit for each byte of a body
            settings.max_queued_file_bytes,
            back_in_s=self._back_in_s,
            unit="bytes of files",
            flag="--max-queued-file-bytes",
        )
        self.is_leaving = False
        self.response_cache = ResponseCache(settings.response_cache_bytes)
        has_vllm_names = settings.metrics_alias == "vllm"
        self.metrics = Metrics(vllm_model_name=settings.model_names[0] if has_vllm_names else None)
        self.open_streams = OpenStreams()
        self.loading_pace = LoadingPace()
        self._started_s = time.monotonic()
        self._engine: ReplicaSet | RowEngine | None = None
        self._tokenizer: Tokenizer | None = None
        self._chat_templates: ChatTemplates | None = None
        self.model_created_s = _model_time_s(settings.model_dir)
        self._backend: Backend | None = None
        self._row_backend: RowBackend | None = None
        self.health = Health(self._health_facts)

    def attach(self, engine: ReplicaSet, tokenizer: Tokenizer, chat_templates: ChatTemplates) -> None:
        """Take the engine whose phase is shown while it loads, and the parts of the model's files that were read."""
        self._engine = engine
        self.adapters.attach(engine)
        self._tokenizer = tokenizer
        self._chat_templates = chat_templates

    @property
    def is_of_rows(self) -> bool:
        """Whether the model computes rows without generation."""
        return is_row_task(self.settings.task)

    @property
    def max_task_rows(self) -> int:
        """The most rows of one call of a task."""
        return self.settings.max_task_rows or (MAX_TEXTS if is_text_task(self.settings.task) else MAX_FILES)

    @property
    def task_payload_limit(self) -> int:
        """The most bytes of the body of a call of a task."""
        settings = self.settings
        if is_file_task(settings.task):
            return settings.media_payload_limit
        return settings.payload_limit or PAYLOAD_BYTES

    def _make_permits(self) -> Permits:
        if self.is_of_rows:
            return Permits(
                self.settings.max_queued_rows,
                on_close=self._on_close,
                back_in_s=self._back_in_s,
                unit="rows",
                flag="--max-queued-rows",
            )
        return Permits(self.settings.max_concurrent_requests, on_close=self._on_close, back_in_s=self._back_in_s)

    def attach_rows(self, engine: RowEngine) -> None:
        """Take the engine of rows, whose phase is shown while the model loads."""
        self._engine = engine

    def become_ready_for_rows(self, model: TaskModel) -> RowBackend:
        """Take calls of tasks from now on."""
        assert isinstance(self._engine, RowEngine)
        self._row_backend = RowBackend(self._engine, model)
        self._settled.set()
        self.health.look()
        return self._row_backend

    async def open_images(self) -> PromptImages | None:
        """Return what reads images where the shard takes images. Raises SettingsError where they cannot be read."""
        assert self._engine is not None
        assert self._tokenizer is not None
        assert self._chat_templates is not None
        facts = self._engine.status.facts
        assert facts is not None
        return await open_images(self.settings, facts, self._tokenizer, self._chat_templates, self.fetcher)

    def become_ready(self, images: PromptImages | None = None) -> Backend:
        """Fix the limits by the facts that the shard reports. Raises SettingsError for limits that cannot be met."""
        assert isinstance(self._engine, ReplicaSet)
        assert self._tokenizer is not None
        assert self._chat_templates is not None
        facts = self._engine.status.facts
        assert facts is not None
        limits = resolve_limits(self.settings, facts, self._engine)
        self.metrics.set_limits(max_input_tokens=limits.max_input_tokens, max_total_tokens=limits.max_total_tokens)
        tokenizer = self._tokenizer
        self._backend = Backend(
            self._engine,
            tokenizer,
            facts,
            limits,
            self._chat_templates,
            make_role_safety(tokenizer, self._chat_templates, frozenset() if images is None else images.token_texts),
            make_grammar_compiler(self.settings, facts),
            SequenceBreakers(tokenizer, num_ids=min(tokenizer.num_ids, facts.vocab_size)),
            images,
        )
        self._settled.set()
        self.health.look()
        return self._backend

    @property
    def is_loading(self) -> bool:
        """Whether the shards have not been ready yet and may still become ready."""
        return self._backend is None and self._row_backend is None and not self.permits.is_closed

    def leave(self) -> None:
        """Say to probes and clients that the server leaves. Calls are served until `permits.close`."""
        self.is_leaving = True
        self.health.look()

    async def wait_settled(self) -> None:
        """Wait until the model is ready or the server leaves. The caller sets the deadline."""
        await self._settled.wait()

    async def close_backend(self) -> None:
        """End the processes that belong to the backend."""
        if self.adapters.loads is not None:
            await self.adapters.loads.close()
        if self._backend is not None:
            await self._backend.grammars.close()
            if self._backend.images is not None:
                await self._backend.images.close()
        if self._row_backend is not None:
            self._row_backend.model.close()

    def open_backend(self) -> Backend:
        """Return the backend for a call that generates. Raises ModelLoading or ShuttingDown."""
        self.permits.check_open()
        if self._backend is None:
            raise self._loading()
        return self._backend

    def open_row_backend(self) -> RowBackend:
        """Return the backend for a call of a task. Raises ModelLoading or ShuttingDown."""
        self.permits.check_open()
        if self._row_backend is None:
            raise self._loading()
        return self._row_backend

    @property
    def row_model(self) -> TaskModel | None:
        """The model of a task without generation; None until the model is ready, and for a model that writes text."""
        return None if self._row_backend is None else self._row_backend.model

    def _loading(self) -> ModelLoading:
        estimated_s = self._estimate_s()
        return ModelLoading(
            f"Model {self.settings.model_id} is loading ({self.phase}); try again later",
            phase=self.phase,
            estimated_s=estimated_s,
            retry_after_s=max(1, round(estimated_s)),
        )

    @property
    def payload_limit(self) -> int:
        """The most bytes of a body. Bodies with images are larger, and a model that loads may take images."""
        settings = self.settings
        if settings.payload_limit is not None:
            return settings.payload_limit
        may_take_images = not self.is_of_rows and (self._backend is None or self._backend.takes_images)
        return settings.media_payload_limit if may_take_images else PAYLOAD_BYTES

    @property
    def takes_images(self) -> bool:
        """Whether the model is ready and takes images in prompts."""
        return self._backend is not None and self._backend.takes_images

    @property
    def max_model_tokens(self) -> int | None:
        """The most tokens of prompt and output, or None while they depend on a model that still loads."""
        if self._row_backend is not None:
            return self._row_backend.model.max_row_tokens
        return self.settings.max_total_tokens if self._backend is None else self._backend.limits.max_total_tokens

    @property
    def phase(self) -> str:
        """The word `draining`, the engine's phase, or the word `starting` while there is no engine yet."""
        if self.is_leaving:
            return "draining"
        return EnginePhase.STARTING.value if self._engine is None else self._engine.status.phase.value

    @property
    def is_healthy(self) -> bool:
        """Whether GET /health answers 200."""
        return self.health.look().health

    @property
    def load_percent(self) -> int | None:
        """The percent of the weights that the shards have read, or None in every other phase."""
        status = None if self._engine is None else self._engine.status
        is_reading = status is not None and status.phase is EnginePhase.WEIGHTS
        return round(100 * status.progress) if status is not None and is_reading else None

    def _back_in_s(self) -> float | None:
        backend = self._backend or self._row_backend
        return None if backend is None else backend.engine.back_in_s()

    def _on_close(self) -> None:
        self._settled.set()
        self.leave()

    def _health_facts(self) -> HealthFacts:
        status = None if self._engine is None else self._engine.status
        phase = EnginePhase.STARTING if status is None else status.phase
        num_away, is_beyond_help = 0, phase is EnginePhase.STOPPED
        backend = self._backend or self._row_backend
        if backend is not None:
            signs = backend.engine.signs()
            num_away = sum(group.is_away for group in signs)
            is_beyond_help = is_beyond_help or all(group.is_given_up for group in signs)
        elif status is not None and phase is EnginePhase.STARTING and status.error is not None:
            is_beyond_help = True  # a shard reports that its start failed
        return HealthFacts(
            start=Start.DONE if backend is not None else _START_OF.get(phase, Start.SILENT),
            num_groups=self.settings.num_replicas,
            num_away=num_away,
            is_full=self.permits.is_full,
            has_room=self.permits.has_room,
            is_leaving=self.is_leaving,
            is_beyond_help=is_beyond_help,
        )

    def report(self) -> dict[str, object]:
        """Return what the router is doing, for the log: phase, permits, and the scheduler's numbers of this moment."""
        stats = None if self._backend is None else self._backend.engine.stats()
        numbers = {} if stats is None else asdict(stats)
        shown = {name: number for name, number in numbers.items() if not name.endswith("_total")}
        return {"phase": self.phase, "num_permits_held": self.permits.held, **shown}

    def expose_metrics(self) -> bytes:
        """Return the text of /metrics, also while the model loads."""
        backend = self._backend
        stats = None if backend is None else backend.engine.stats()
        numbers = None
        if backend is not None and stats is not None:
            engine = backend.engine
            is_up = engine.status.phase is EnginePhase.READY
            numbers = EngineNumbers(
                stats,
                engine.steps,
                backend.facts.block_size,
                is_up,
                self.replica_numbers(),
                engine.num_moved_requests,
                engine.num_computed_by_caller(),
                self._adapter_numbers(engine),
                [one.media_counts for one in engine.replicas] if backend.facts.media_kinds else None,
            )
        rows = None
        if isinstance(self._engine, RowEngine):
            rows = RowNumbers(self._engine.metrics, self._engine.num_waiting, self._engine.num_waiting_tokens)
        kept = self.response_cache
        cache = CacheNumbers(num_hits=kept.num_hits, num_misses=kept.num_misses, num_bytes=kept.num_bytes)
        is_up = self._engine is not None and self._engine.status.phase is EnginePhase.READY
        return self.metrics.expose(
            numbers,
            cache,
            num_in_flight=self.permits.held,
            state=self.health.look().state,
            rows=rows,
            is_up=is_up if rows is not None else None,
        )

    def _adapter_numbers(self, engine: ReplicaSet) -> AllAdapters | None:
        if self.adapters.loads is None:
            return None
        registry, loads = self.adapters.registry, engine.num_by_adapter()
        numbers = [
            AdapterNumbers(one.name, one.num_requests, load.num_running, load.num_waiting)
            for one in registry.listed()
            if one.facts is not None
            for load in [loads.get(one.name, AdapterLoad())]
        ]
        return AllAdapters(numbers, registry.num_bytes, self.adapters.loads.load_s)

    def replica_numbers(self) -> list[ReplicaNumbers]:
        """Return the numbers of each replica, in the order of the replicas' numbers; none while there is no engine."""
        if isinstance(self._engine, RowEngine):
            return [ReplicaNumbers(None, replica.status.phase.value) for replica in self._engine.replicas]
        replicas = () if self._engine is None else self._engine.replicas
        return [ReplicaNumbers(replica.stats(), replica.status.phase.value) for replica in replicas]

    def compute_type(self, facts: ShardFacts) -> str:
        """Return the number and kind of devices as the header x-compute-type shows them."""
        return self.settings.compute_type or f"{facts.world_size}-{facts.device}"

    def row_compute_type(self, facts: TaskFacts) -> str:
        """Return the number and kind of devices of a model of rows as the header x-compute-type shows them."""
        return self.settings.compute_type or f"1-{facts.device}"

    def _estimate_s(self) -> float:
        """Return the seconds until the model is ready if further phases go at the speed of the phases before."""
        status = None if self._engine is None else self._engine.status
        phase = EnginePhase.STARTING if status is None else status.phase
        index = LOADING_PHASES.index(phase) if phase in LOADING_PHASES else 0
        progress = 0.0 if status is None else min(1.0, max(0.0, status.progress))
        done = (index + progress) / len(LOADING_PHASES)
        elapsed_s = time.monotonic() - self._started_s
        estimated_s = elapsed_s * (1 - done) / max(done, 0.1)
        return round(min(_MAX_ESTIMATE_S, max(1.0, estimated_s)), 1)


def make_role_safety(
    tokenizer: Tokenizer, templates: ChatTemplates, image_texts: frozenset[str] = frozenset()
) -> RoleSafety:
    """Return the guard that keeps users' texts from becoming special tokens of this vocabulary and these templates.

    `image_texts` are the tokens that stand for images, special or not.
    """
    special = tokenizer.special_texts | image_texts
    markup = markup_texts(tokenizer.plain_added_texts - image_texts, templates.sources)
    return RoleSafety(
        special,
        markup,
        normalized_special=tokenizer.normalized_tokens(special),
        normalized_markup=tokenizer.normalized_tokens(markup),
    )


def make_grammar_compiler(settings: Settings, facts: ShardFacts) -> GrammarCompiler:
    """Return the compiler for this shard's vocabulary, or one that refuses every grammar with the reason."""
    refusal = None
    if settings.disable_grammar_support:
        refusal = "this server takes none (--disable-grammar-support)"
    elif "grammar" not in facts.features:
        refusal = "the tokenizer of this model allows none"
    return GrammarCompiler(
        tokenizer_file=str(Path(settings.model_dir) / "tokenizer.json"),
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        refusal=refusal,
    )


def _model_time_s(folder: str) -> int:
    """Return when the model's folder was written, in seconds since 1970, or the time now where nothing tells."""
    try:
        return int((Path(folder) / "tokenizer.json").stat().st_mtime)
    except OSError:
        return int(time.time())


def scheduler_config(settings: Settings, facts: ShardFacts) -> SchedulerConfig:
    """Return the scheduler's settings for this shard."""
    max_prefill = max_prefill_tokens(settings, facts)
    num_replicas = settings.num_replicas  # each has a queue of its own
    return SchedulerConfig(
        budget=Budget(
            max_step_tokens=facts.max_step_tokens,
            max_prefill_tokens=max_prefill,
            max_chunk_tokens=max(1, max_prefill // CHUNKS_PER_PREFILL),
        ),
        max_waiting_requests=math.ceil(settings.max_queued_requests / num_replicas),
        max_waiting_tokens=math.ceil(settings.max_queued_tokens / num_replicas),
        max_waiting_s=settings.max_queue_seconds,
        prefix_caching=settings.prefix_caching,
    )
