"""The facts of a shard, compared with messages written by hand from shard.proto."""

from dataclasses import replace

from textmill_proto.v1 import shard_pb2
from textmill_router.engine.shard_facts import ShardHealth, facts_from_proto, health_from_proto, pool_of
from textmill_router.scheduler.plan import ShardPool

from tests.fakes.router_facts import router_facts


def test_lists_of_the_message_become_tuples() -> None:
    info = shard_pb2.ShardInfo(
        model_id="org/m", eos_token_ids=[2, 5], features=["prefix_cache"], decoder_prompt_ids=[2, 0]
    )
    facts = facts_from_proto(info)
    assert (facts.model_id, facts.eos_token_ids, facts.features) == ("org/m", (2, 5), ("prefix_cache",))
    assert facts.decoder_prompt_ids == (2, 0)


def test_a_model_has_an_encoder_when_its_decoder_begins_with_tokens_of_its_own() -> None:
    assert router_facts(decoder_prompt_ids=[0]).has_encoder
    assert not router_facts().has_encoder


def test_the_scheduler_gets_the_sizes_of_the_pool() -> None:
    facts = router_facts(num_blocks=100, num_slots=8, block_size=16, max_step_tokens=512, rope_border=4096)
    pool = ShardPool(num_slots=8, num_blocks=100, block_size=16, max_step_tokens=512, rope_border=4096)
    assert pool_of(facts) == pool
    assert pool_of(replace(facts, features=())) == replace(pool, can_share_prefixes=False)


def test_health_tells_the_phase_while_loading_and_the_reason_after_a_failure() -> None:
    loading = shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_LOADING, phase="weights", progress=0.5)
    assert health_from_proto(loading) == ShardHealth(False, False, "weights", 0.5, "")
    failed = shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_FAILED, detail="no memory")
    assert health_from_proto(failed) == ShardHealth(False, True, "", 0.0, "no memory")
    assert health_from_proto(shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_READY)).is_ready
