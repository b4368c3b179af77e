"""Makes the step loop of a shard without its process: an `Engine`, with defaults for the parts of no interest."""

import time
from collections.abc import Callable

from textmill_shard.engine.adapter_desk import AdapterDesk
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.part_desk import PartDesk
from textmill_shard.engine.part_sampling import PartSampling
from textmill_shard.engine.rank_channel import RankChannel, SoloChannel
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.part_sampler import PartSampler
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
    vocabulary: SharedVocabulary | None = None,
) -> Engine:
    """Return an engine that no thread runs yet. Without `matchers` no request can have a grammar.

    Without `reader` the adapters are those of `formula_adapters.py`, and without `media` no prompt has images. With
    `token_reader` steps overlap. `vocabulary` is that of the executor.
    """
    finish_rules = FinishRules(facts.eos_token_ids)
    grammars = GrammarSlots(matchers, finish_rules)
    sampler = sampler or Sampler(num_slots=facts.num_slots, device=executor.device)
    channel = channel or SoloChannel()
    parts = None if vocabulary is None else PartDesk(PartSampler(sampler, vocabulary), channel)
    return Engine(
        executor=executor,
        row_sampler=RowSampler(
            sampler=sampler,
            finish_rules=finish_rules,
            grammars=grammars,
            has_overlap=token_reader is not None,
            parts=parts,
        ),
        grammars=grammars,
        finish_rules=finish_rules,
        channel=channel,
        adapters=AdapterDesk(executor, reader or AdapterReader(read_shift, SoloGroup()), max_bytes=facts.adapter_bytes),
        status=status,
        media=media,
        lease_s=lease_s,
        clock=clock,
        reader=token_reader,
    )


def make_part_sampling(
    sampler: Sampler, facts: ShardFacts, channel: RankChannel, vocabulary: SharedVocabulary | None
) -> PartSampling | None:
    """Return what another rank than 0 does of the sampling; None where each rank computes all logits."""
    if vocabulary is None:
        return None
    return PartSampling(
        sampler=sampler,
        parts=PartSampler(sampler, vocabulary),
        finish_rules=FinishRules(facts.eos_token_ids),
        channel=channel,
        vocab_size=facts.vocab_size,
    )
