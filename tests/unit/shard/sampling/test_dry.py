"""DRY against its definition, which a fake writes out with loops over all places of the text; and DRY ends a loop."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_shard.sampling.dry import LARGEST_LOSS, Dry, shared_ends
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.dry_formula import dry_losses
from tests.fakes.sampling_hand import CPU, Seat, random_logits, rows_of, sample, seated_sampler, staged_scores
from tests.fakes.step_harness import Shard, admit

VOCAB = 6
TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
DRY = SamplingParams(dry_multiplier=0.8, dry_base=1.75, dry_allowed_length=2)


PARAMS = st.builds(
    SamplingParams,
    dry_multiplier=st.sampled_from([0.5, 2.0, 100.0]),
    dry_base=st.sampled_from([1.0, 1.75, 3.0]),
    dry_allowed_length=st.integers(1, 5),
    dry_breaker_ids=st.sampled_from([(), (3,), (0, 3)]),
)


@settings(deadline=None, derandomize=True)
@given(prompts=st.lists(TEXTS, min_size=1, max_size=3), output=TEXTS, params=st.lists(PARAMS, min_size=3, max_size=3))
def test_tokens_lose_as_the_definition_says(
    prompts: list[list[int]], output: list[int], params: list[SamplingParams]
) -> None:
    seats = [Seat(one, prompt, output) for prompt, one in zip(prompts, params, strict=False)]
    found = staged_scores(torch.zeros(len(seats), VOCAB), seats, Dry(num_slots=len(seats), device=CPU))
    expected = [dry_losses([*seat.prompt, *seat.output], seat.params, VOCAB) for seat in seats]
    torch.testing.assert_close(-found, torch.tensor(expected), rtol=1e-6, atol=0)


@settings(deadline=None, derandomize=True)
@given(prompts=st.lists(TEXTS, min_size=2, max_size=2), output=TEXTS, params=st.lists(PARAMS, min_size=2, max_size=2))
def test_a_text_that_grows_costs_as_one_that_is_admitted(
    prompts: list[list[int]], output: list[int], params: list[SamplingParams]
) -> None:
    stage = Dry(num_slots=2, device=CPU)
    rows = rows_of([0, 1], is_all=True)
    for slot in range(2):
        stage.admit(slot, params[slot], Seat(params[slot], prompts[slot]).text)
    for token in output:
        stage.append(rows, torch.tensor([token, 3 - token]))
    scores = torch.zeros(2, VOCAB)
    stage.apply(scores, rows)
    outputs = (output, [3 - token for token in output])
    expected = [dry_losses([*prompts[slot], *outputs[slot]], params[slot], VOCAB) for slot in range(2)]
    torch.testing.assert_close(-scores, torch.tensor(expected), rtol=1e-6, atol=0)


def test_texts_outgrow_the_first_width_and_the_next_occupant_begins_anew() -> None:
    stage = Dry(num_slots=2, device=CPU)
    rows = rows_of([1], is_all=False)
    stage.admit(1, DRY, Seat(DRY, [4] * 300).text)
    stage.admit(1, DRY, Seat(DRY, [1, 2, 3]).text)
    text = [1, 2, 3]
    for token in [0, 1, 2, 4, 3, 1, 2] * 30:
        stage.append(rows, torch.tensor([token]))
        text.append(token)
        scores = torch.zeros(2, VOCAB)
        stage.apply(scores, rows)
        # The time of the definition grows with the third power of the length of the text.
        if len(text) < 40:
            torch.testing.assert_close(-scores[1], torch.tensor(dry_losses(text, DRY, VOCAB)), rtol=1e-6, atol=0)
    # The text repeats from its first period on. 0.8 * 1.75 ** 200 is more than the largest loss.
    assert -scores[1, 0] == torch.tensor(LARGEST_LOSS)
    assert not scores[0].any()


def test_a_row_that_asks_for_nothing_stays() -> None:
    logits = random_logits(2, vocab=VOCAB)
    seats = [Seat(SamplingParams(), [1, 2, 1, 2, 1, 2]), Seat(DRY, [1, 2, 1, 2, 1, 2])]
    found = staged_scores(logits, seats, Dry(num_slots=2, device=CPU))
    assert torch.equal(found[0], logits[0])
    assert not torch.equal(found[1], logits[1])


def test_the_ends_of_a_long_text_are_found_in_linear_time() -> None:
    class Counted(int):
        num_compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.num_compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    size = 2000
    assert shared_ends([Counted(7)] * size) == [*range(1, size), 0]
    assert Counted.num_compared < 4 * size


def test_the_only_token_that_a_grammar_allows_is_drawn_whatever_it_loses() -> None:
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[1] = True
    params = replace(DRY, dry_multiplier=100.0, dry_base=1e30, do_sample=True, seed=5, has_grammar=True)
    seat = Seat(params, [1] * 50, [], allowed.numpy())
    assert sample(torch.zeros(1, VOCAB), [seat]).tokens_N.tolist() == [1]


def test_a_loop_of_the_model_ends() -> None:
    """A model that says 1, 2, 3, 4, 1, 2, 3, 4 ... for ever, 5 logits above all else."""

    def say(tokens: Sequence[int]) -> int:
        return tokens[-1] % 4 + 1

    def output(sampling: SamplingParams) -> list[int]:
        with Shard() as shard:
            shard.runner.say = say
            shard.send(admits=[admit(0, [1, 2], max_new=26, sampling=sampling)])
            return shard.run_to_end(0)[0]

    assert output(SamplingParams()) == ([3, 4, 1, 2] * 7)[:26]
    dry = output(replace(DRY, dry_multiplier=1.0, dry_base=2.0))
    # Repeating n tokens costs 2 ** (n - 2): 4 for n = 4, 8 for n = 5, which is more than 5.
    assert dry[:7] == [3, 4, 1, 2, 3, 4, 1]
    assert dry[7] not in (1, 2, 3, 4)


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_rule_18_a_request_with_dry_goes_on_after_a_preemption_as_if_undisturbed(cut: int) -> None:
    sampling = replace(DRY, dry_multiplier=2.0, do_sample=True, seed=9, temperature=2.0, dry_breaker_ids=(7, 8))
    prompt = [5, 3, 5, 3, 5, 3]
    with Shard() as shard:
        shard.send(admits=[admit(0, prompt, max_new=20, sampling=sampling)])
        undisturbed = shard.run_to_end(0)[0]
    with Shard() as shard:
        shard.send(admits=[admit(2, prompt, output=undisturbed[:cut], max_new=20, sampling=sampling)])
        assert shard.run_to_end(2)[2] == undisturbed[cut:]


def test_requests_without_dry_take_the_best_id_without_the_sampler() -> None:
    sampler = seated_sampler([Seat(SamplingParams(dry_base=3.0, dry_allowed_length=9))])
    assert sampler.takes_best(sampler.select(rows_of([0], is_all=True).on_host.slots_G))
