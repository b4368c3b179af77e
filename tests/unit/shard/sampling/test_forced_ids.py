"""Forced ids at both ends of an output: the stage against transformers' logits processors."""

import torch
from textmill_shard.sampling.forced_ids import ForcedIds
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import ForcedBOSTokenLogitsProcessor, ForcedEOSTokenLogitsProcessor

from tests.fakes.sampling_hand import random_logits, rows_of
from tests.fakes.step_harness import Shard, admit, ids

VOCAB = 9
PARAMS = SamplingParams(forced_first_ids=(4,), forced_last_ids=(7, 2), max_new_tokens=4)


def test_the_scores_are_those_of_transformers_at_each_place() -> None:
    first = ForcedBOSTokenLogitsProcessor(4)
    last = ForcedEOSTokenLogitsProcessor(max_length=5, eos_token_id=[7, 2], device="cpu")
    stage = ForcedIds(num_slots=2)
    stage.admit(1, PARAMS, SlotText(ids([3])))
    rows = rows_of([1], is_all=False)
    for text in ([3], [3, 4], [3, 4, 6], [3, 4, 6, 5]):
        logits = random_logits(2, vocab=VOCAB)
        found = logits.clone()
        stage.apply(found, rows)
        expected = logits[1:].clone()
        for processor in (first, last):
            expected = processor(torch.tensor([text]), expected)
        assert torch.equal(found[1:], expected)
        assert torch.equal(found[0], logits[0])
        stage.append(rows, torch.tensor([5]))


def test_a_request_that_is_admitted_again_goes_on_where_it_was() -> None:
    stage = ForcedIds(num_slots=1)
    stage.admit(0, PARAMS, SlotText(ids([3]), ids([4, 6, 5])))
    scores = torch.zeros(1, VOCAB)
    stage.apply(scores, rows_of([0], is_all=True))
    assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == [2, 7]


def test_the_step_loop_forces_both_ends() -> None:
    params = SamplingParams(forced_first_ids=(11,), forced_last_ids=(12,))
    with Shard() as shard:
        shard.send(admits=[admit(0, [5, 3, 8], max_new=4, sampling=params)])
        tokens = shard.run_to_end(0)[0]
        assert (tokens[0], tokens[3], len(tokens)) == (11, 12, 4)
