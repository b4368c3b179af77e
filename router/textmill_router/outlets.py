"""What the router sends to others than its callers: the traces of calls, and the events of the KV cache."""

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.extras import ExtraMissing
from textmill_router.kv_events.event_buffer import BlockFacts, EventBuffer
from textmill_router.kv_events.start import EventSettings, start_publisher
from textmill_router.scheduler.cache_watch import CacheWatcher
from textmill_router.settings import Settings, SettingsError
from textmill_router.tracing.start import start_tracing

if TYPE_CHECKING:
    from textmill_router.kv_events.publisher import EventPublisher
    from textmill_router.tracing.span_writer import SpanWriter

log = logging.getLogger(__name__)

NO_TOPIC = "none"  # of --kv-events-topic: the first frame is empty, as vllm-router wants
LAST_NEWS_S = 2.0  # in which the last spans and events may leave


@dataclass(frozen=True, slots=True)
class Outlets:
    """The outlets that the settings ask for; None stands for one that they do not ask for."""

    spans: "SpanWriter | None"
    events: "EventPublisher | None"
    num_replicas: int

    def watcher_of(self, replica: int, facts: ShardFacts) -> CacheWatcher | None:
        """Return the watcher of a replica's prefix index, or None where nobody asks for its events."""
        if self.events is None:
            return None
        blocks = BlockFacts(
            block_size=facts.block_size,
            medium="GPU" if facts.device.startswith("cuda") else "CPU",
            replica=replica if self.num_replicas > 1 else None,
            rope_border=facts.rope_border,
        )
        return EventBuffer(blocks, self.events.publish)

    async def close(self) -> None:
        """Send what waits, for a short time, because those who listen may be gone."""
        if self.spans is not None and not await asyncio.to_thread(self.spans.close, LAST_NEWS_S):
            log.warning("the last spans are lost, the collector did not take them", extra={"waited_s": LAST_NEWS_S})
        if self.events is not None:
            await asyncio.to_thread(self.events.close, LAST_NEWS_S)


def open_outlets(settings: Settings) -> Outlets:
    """Return the outlets. Raises SettingsError for a missing extra, and CannotListen for a taken port."""
    topic = settings.kv_events_topic or f"kv@{socket.gethostname()}@{settings.model_names[0]}"
    if topic == NO_TOPIC:
        topic = ""
    addresses = EventSettings(settings.hostname, settings.kv_events_port, settings.kv_events_replay_port, topic)
    try:
        spans = start_tracing(settings.otlp_endpoint, settings.otlp_service_name)
        events = start_publisher(addresses)
    except ExtraMissing as error:
        raise SettingsError(str(error)) from None
    if events is not None:
        ports = {"port": events.port, "replay_port": events.replay_port, "topic": topic}
        log.info("publishing events of the KV cache", extra=ports)
        if (settings.api_key or settings.api_key_file) and not settings.shared_prefix_cache:
            log.warning(
                "callers with API keys have prefixes of their own, of which no event is published: give "
                "--shared-prefix-cache if they trust each other"
            )
    return Outlets(spans, events, len(settings.shard_uds_path))
