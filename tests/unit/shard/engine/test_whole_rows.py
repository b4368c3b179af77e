"""Ranks that share a vocabulary are told for each step which rows need all of their scores."""

import numpy as np
import pytest
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.server.wire import plan_from_wire

from tests.fakes.step_harness import Shard


def admit(slot: int, *, do_sample: bool) -> pb.Admit:
    neutral = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
    return pb.Admit(
        request_id=slot + 1,
        slot=slot,
        prompt_ids=np.arange(3, dtype="<u4").tobytes(),
        block_ids=[np.arange(8 * slot, 8 * slot + 6, dtype="<u4").tobytes()],
        max_new_tokens=3,
        ignore_eos=True,
        sampling=pb.Sampling(do_sample=do_sample, seed=5, **neutral),
    )


@pytest.mark.parametrize("shares_vocabulary", [True, False])
def test_a_step_names_the_rows_that_draw(shares_vocabulary: bool) -> None:
    with Shard(shares_vocabulary=shares_vocabulary) as shard:
        plan = pb.Plan(number=1, admits=[admit(slot, do_sample=slot in (1, 2)) for slot in range(3)])
        shard.engine.submit_plan(shard.session, plan_from_wire(plan), plan.SerializeToString())
        shard.run_to_end(0, 1, 2)
    batches = shard.runner.batches
    assert all(len(batch.logit_rows_N) == 3 for batch in batches)
    expected = [1, 2] if shares_vocabulary else None
    assert [None if batch.whole_rows_N is None else batch.whole_rows_N.tolist() for batch in batches] == [
        expected for _ in batches
    ]
