"""Score changes against transformers' processors, or against the contract's formula in plain Python."""

import numpy as np
import pytest
import torch
from textmill_shard.sampling.logits_processors import process
from textmill_shard.sampling.slot_sampling import SlotSampling
from textmill_shard.sampling.watermark import WatermarkKey, is_green
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

VOCAB = 50
TEXTS = [([1, 2, 3, 4], [5, 5, 1]), ([7], []), ([9, 9, 0, 49, 8], [9])]  # (prompt, output), unlike lengths


def random_logits(num_rows: int = len(TEXTS)) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(3)) * 4


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits = random_logits()
    slots = [SlotSampling(SamplingParams(repetition_penalty=penalty), *text) for text in TEXTS]
    expected = [
        RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits[row : row + 1].clone())[0]
        for row, (prompt, output) in enumerate(TEXTS)
    ]
    torch.testing.assert_close(process(logits, slots), torch.stack(expected), rtol=0, atol=0)


def test_presence_and_frequency_count_output_tokens_only():
    logits = random_logits()
    settings = [(0.5, 0.0), (0.0, 0.25), (-1.0, 1.5)]
    expected = logits.clone()
    slots = []
    for row, (prompt, output) in enumerate(TEXTS):
        presence, frequency = settings[row]
        slots.append(
            SlotSampling(SamplingParams(presence_penalty=presence, frequency_penalty=frequency), prompt, output)
        )
        for token in range(VOCAB):
            count = output.count(token)
            expected[row, token] -= presence * (count > 0) + frequency * count
    torch.testing.assert_close(process(logits, slots), expected)


def test_appended_tokens_count_like_those_of_an_admit():
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25)
    logits = random_logits(1)
    output = [int(token) for token in torch.randint(VOCAB, (200,), generator=torch.Generator().manual_seed(1))]
    grown = SlotSampling(params, [3, 4])
    for token in output:
        grown.append(token)
    admitted = SlotSampling(params, [3, 4], output)
    assert grown.num_output_tokens == admitted.num_output_tokens == 200
    torch.testing.assert_close(process(logits, [grown]), process(logits, [admitted]), rtol=0, atol=0)


def test_many_new_tokens_outgrow_the_first_table():
    params = SamplingParams(frequency_penalty=1.0)
    logits = torch.zeros(1, 500)
    slot = SlotSampling(params, [1])
    for token in [*range(500), *range(0, 500, 2)]:
        slot.append(token)
    expected = torch.tensor([[-2.0 if token % 2 == 0 else -1.0 for token in range(500)]])
    assert torch.equal(process(logits, [slot]), expected)


def test_bias_is_added_and_adds_up():
    logits = random_logits(2)
    slots = [
        SlotSampling(SamplingParams(logit_bias=((4, 2.5), (0, -100.0), (4, 1.0))), [1]),
        SlotSampling(SamplingParams(), [1]),
    ]
    expected = logits.clone()
    expected[0, 4] += 3.5
    expected[0, 0] -= 100.0
    torch.testing.assert_close(process(logits, slots), expected)


@pytest.mark.parametrize("num_output", [0, 1, 2, 3])
def test_end_ids_are_masked_until_min_new_tokens(num_output):
    logits = random_logits(1)
    prompt, output = [1, 2, 3], [5, 6, 7][:num_output]
    slot = SlotSampling(SamplingParams(min_new_tokens=2, end_ids=(0, 17)), prompt, output)
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 2, [0, 17])
    expected = processor(torch.tensor([prompt + output]), logits.clone())
    torch.testing.assert_close(process(logits, [slot]), expected, rtol=0, atol=0)


def test_penalties_come_before_bias_and_bias_before_the_mask():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    params = SamplingParams(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        logit_bias=((0, 10.0), (2, 50.0)),
        min_new_tokens=5,
        end_ids=(2,),
    )
    slot = SlotSampling(params, [0], [1])
    # 2 / 2 + 10; -2 * 2 - 0.5; masked
    assert process(logits, [slot]).tolist() == [[11.0, -4.5, -torch.inf]]


def test_rows_that_ask_for_nothing_cost_no_copy():
    logits = random_logits()
    before = logits.clone()
    plain = [SlotSampling(SamplingParams(temperature=0.5, do_sample=True), *text) for text in TEXTS]
    assert process(logits, plain) is logits
    slots = [*plain[:2], SlotSampling(SamplingParams(repetition_penalty=2.0), *TEXTS[2])]
    changed = process(logits, slots)
    assert torch.equal(logits, before)
    assert torch.equal(changed[:2], before[:2])
    assert not torch.equal(changed[2], before[2])


def test_a_grammars_mask_is_final_and_replaces_that_of_min_new_tokens():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    params = SamplingParams(logit_bias=((1, 100.0), (3, 1.0)), min_new_tokens=5, end_ids=(3,))
    matched = SlotSampling(params, [0], [1])
    matched.allowed_V = np.array([True, False, False, True])
    plain = SlotSampling(SamplingParams(), [0])
    assert process(logits, [matched, plain]).tolist() == [[2.0, -torch.inf, -torch.inf, 1.5], [1.0, 2.0, 3.0, 4.0]]


def test_the_watermark_raises_the_green_list_of_the_last_token():
    logits = random_logits(4)
    key = WatermarkKey(gamma=0.25, delta=1.5)
    marked = SamplingParams(watermark=True)
    slots = [
        SlotSampling(marked, [7, 3]),
        SlotSampling(SamplingParams(), [7, 3]),
        SlotSampling(marked, [7], [3]),
        SlotSampling(marked, [3, 7], [5]),
    ]
    slots[3].append(9)
    expected = logits.clone()
    for row, last in ((0, 3), (2, 3), (3, 9)):
        for token in range(logits.shape[1]):
            expected[row, token] += 1.5 * bool(is_green(torch.tensor(last), torch.tensor(token), 0.25))
    torch.testing.assert_close(process(logits, slots, key), expected)
