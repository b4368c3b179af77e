"""Makes the step loop of a shard without its process: an `Engine`, with defaults for the parts of no interest."""

import time
from collections.abc import Callable

from textmill_shard.engine.adapter_desk import AdapterDesk
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.rank_channel import RankChannel, SoloChannel
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import ShardFacts

from tests.fakes.formula_adapters import read_shift


def make_engine(
    executor: StepExecutor,
    facts: ShardFacts,
    *,
    status: ShardStatus,
    channel: RankChannel | None = None,
    reader: AdapterReader | None = None,
    sampler: Sampler | None = None,
    matchers: MatcherFactory | None = None,
    media: MediaDesk | None = None,
    lease_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    token_reader: TokenReader | None = None,
) -> Engine:
    """Return an engine that no thread runs yet. Without `matchers` no request can have a grammar.

    Without `reader` the adapters are those of `formula_adapters.py`, and without `media` no prompt has images. With
    `token_reader` steps overlap.
    """
    finish_rules = FinishRules(facts.eos_token_ids)
    grammars = GrammarSlots(matchers, finish_rules)
    sampler = sampler or Sampler(num_slots=facts.num_slots, device=executor.device)
    return Engine(
        executor=executor,
        row_sampler=RowSampler(
            sampler=sampler, finish_rules=finish_rules, grammars=grammars, has_overlap=token_reader is not None
        ),
        grammars=grammars,
        finish_rules=finish_rules,
        channel=channel or SoloChannel(),
        adapters=AdapterDesk(executor, reader or AdapterReader(read_shift, SoloGroup()), max_bytes=facts.adapter_bytes),
        status=status,
        media=media,
        lease_s=lease_s,
        clock=clock,
        reader=token_reader,
    )
