"""The order of the stages. Rows that ask for no stage stay, and the state of a slot is a function of its Admit."""

import torch
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.sampling_hand import CPU, Seat, random_logits, sample, seated_sampler, step_rows


def test_penalties_come_before_bias_and_bias_before_the_mask() -> None:
    params = {
        "repetition_penalty": 2.0,
        "presence_penalty": 0.5,
        "logit_bias": ((0, 10.0), (2, 50.0)),
        "min_new_tokens": 5,
        "end_ids": (2,),
    }
    seat = Seat(SamplingParams(**params), [0], [1])  # type: ignore[arg-type]
    # 2 / 2 + 10 beats 10.5 by 0.5; with the bias first, (2 + 10) / 2 would not. Id 2 is masked, whatever its bias.
    assert sample(torch.tensor([[2.0, -2.0, 1.0, 10.5]]), [seat]).tokens_N.tolist() == [0]
    # -2 * 2 - 0.5 = -4.5 is above -4.6; the amounts taken off before the factor would leave -5.
    low = torch.tensor([[-100.0, -2.0, 1.0, -4.6]])
    assert sample(low, [seat]).tokens_N.tolist() == [1]
    assert sample(low + torch.tensor([0.0, 0.0, 0.0, 0.2]), [seat]).tokens_N.tolist() == [3]


def test_rows_that_ask_for_nothing_stay_as_they_are() -> None:
    logits = random_logits(3)
    before = logits.clone()
    best = int(logits[2].argmax())
    seats = [Seat(SamplingParams()), Seat(SamplingParams()), Seat(SamplingParams(logit_bias=((best, -100.0),)))]
    found = sample(logits, seats).tokens_N
    assert torch.equal(logits, before)
    assert found[:2].tolist() == before[:2].argmax(-1).tolist()
    assert int(found[2]) == int(before[2].topk(2).indices[1])


def test_appended_tokens_count_like_those_of_an_admit() -> None:
    params = SamplingParams(
        do_sample=True,
        seed=4,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        watermark=True,
        min_new_tokens=90,
        end_ids=(3, 11),
        allowed_ids=tuple(range(2, 40)),
        bad_sequences=((5,), (6, 7), (8, 9, 10)),
    )
    grown = seated_sampler([Seat(params, [3, 4])])
    seat = Seat(params, [3, 4])
    for step in range(120):
        logits = random_logits(1, seed=step)
        rows = step_rows(grown, [0])
        tokens = grown.sample(logits, rows).tokens_N
        assert sample(logits, [seat]).tokens_N.tolist() == tokens.tolist(), step
        grown.append(rows, tokens)
        seat = seat.with_token(int(tokens[0]))


def test_the_next_occupant_of_a_slot_has_none_of_the_wishes_of_the_last() -> None:
    logits = random_logits(1)
    asking = SamplingParams(
        do_sample=True, repetition_penalty=3.0, frequency_penalty=9.0, logit_bias=((1, 50.0),), watermark=True
    )
    sampler = Sampler(num_slots=1, device=CPU)
    for params in (asking, SamplingParams()):
        seat = Seat(params, list(range(40)), list(range(40)))
        sampler.admit(0, seat.params, seat.text)
    assert sampler.sample(logits, step_rows(sampler, [0])).tokens_N.tolist() == logits.argmax(-1).tolist()
