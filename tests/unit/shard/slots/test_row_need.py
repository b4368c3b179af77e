"""No request that the sampler does anything for but taking the best id is said to need the best id alone."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import Admit, Beams, EarlyStopping, Grammar
from textmill_shard.slots.row_need import takes_best_id
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import SlotTable

# Another value than the default for each field.
CHANGES: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "typical_p": 0.5,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_breaker_ids": (5,),
    "seed": 7,
    "logit_bias": ((3, 1.0),),
    "allowed_ids": (3, 4),
    "bad_sequences": ((3,),),
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "forced_first_ids": (3,),
    "forced_last_ids": (3,),
    "min_new_tokens": 2,
    "max_new_tokens": 5,
    "end_ids": (2,),
    "wants_logprobs": True,
    "top_n_tokens": 2,
    "watermark": True,
    "has_grammar": True,
}
NEED_NOTHING = {"temperature", "top_k", "top_p", "min_p", "typical_p", "dry_base", "dry_allowed_length"}
NEED_NOTHING |= {"dry_breaker_ids", "seed", "max_new_tokens", "end_ids", "wants_logprobs"}


def make_admit(params: SamplingParams, **changes: Any) -> Admit:
    ids = np.arange(3)
    admit = Admit(0, 0, ids, ids[:0], 0, np.arange(4), max_new_tokens=5, sampling=params)
    return replace(admit, **changes)


def test_every_parameter_has_a_case() -> None:
    assert set(CHANGES) == {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize("name", CHANGES)
def test_the_need_of_a_row_is_that_of_the_sampler(name: str) -> None:
    params = replace(SamplingParams(), **{name: CHANGES[name]})
    assert takes_best_id(make_admit(params)) == (name in NEED_NOTHING)
    if name in NEED_NOTHING:
        # The ids that end a request and its length are filled in by the loop, beside what the request asks for.
        sampler = Sampler(num_slots=1, device=torch.device("cpu"))
        filled = replace(params, end_ids=(2,), max_new_tokens=5)
        sampler.admit(0, filled, SlotText(np.arange(3), np.arange(0), np.arange(0)))
        assert sampler.takes_best(sampler.select(np.array([0])))


def test_grammars_and_searches_need_whole_rows() -> None:
    assert takes_best_id(make_admit(SamplingParams()))
    assert not takes_best_id(make_admit(SamplingParams(), grammar=Grammar("start: /a/")))
    assert not takes_best_id(make_admit(SamplingParams(), beams=Beams(2, 1, 1.0, EarlyStopping.NO)))


def test_the_table_knows_the_need_of_each_slot() -> None:
    table = SlotTable(num_slots=2, block_size=4, num_blocks=8)
    table.admit(make_admit(SamplingParams(do_sample=True)))
    assert table.needs_row.tolist() == [True, False]
    table.end(0)
    table.admit(make_admit(SamplingParams(wants_logprobs=True)))
    assert table.needs_row.tolist() == [False, False]
