from textmill_router.request import GenerationRequest, RequestId, Slot, token_array
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.suspects import Suspects


def make_seated(request_id: int = 1) -> RequestState:
    state = RequestState(
        GenerationRequest(RequestId(request_id), prompt_ids=token_array([1]), max_new_tokens=4, arrival_s=0.0)
    )
    state.slot = Slot(0)
    return state


def give_token(state: RequestState) -> None:
    state.output_ids.append(5)


def test_rule_22_two_strikes_make_a_suspect():
    suspects, state = Suspects(), make_seated()
    assert not suspects.is_guilty(state, is_alone=False)
    assert not suspects.is_suspect(state)
    assert not suspects.is_guilty(state, is_alone=False)
    assert suspects.is_suspect(state)


def test_rule_22_a_death_after_a_token_takes_the_strikes_away():
    suspects, state = Suspects(), make_seated()
    suspects.is_guilty(state, is_alone=False)
    give_token(state)
    suspects.is_guilty(state, is_alone=False)
    state.num_outputs_at_epoch = 1
    suspects.is_guilty(state, is_alone=False)
    assert not suspects.is_suspect(state)


def test_rule_22_the_door_is_closed_until_the_suspect_has_a_token_or_has_left():
    for has_token in (True, False):
        suspects, state = Suspects(), make_seated()
        state.num_strikes = 2
        suspects.enter(state)
        assert suspects.is_prefill_closed()
        if has_token:
            give_token(state)
        else:
            state.slot = None
        assert not suspects.is_prefill_closed()
        assert suspects.is_suspect(state) is not has_token


def test_rule_22_only_the_suspect_that_was_alone_is_guilty():
    suspects, alone, other = Suspects(), make_seated(1), make_seated(2)
    alone.num_strikes = other.num_strikes = 2
    suspects.enter(alone)
    assert not suspects.is_guilty(other, is_alone=False)
    assert suspects.is_guilty(alone, is_alone=False)
    suspects.end_epoch()
    assert not suspects.is_prefill_closed()


def test_rule_22_two_deaths_that_find_a_request_alone_without_a_token_make_it_guilty() -> None:
    suspects, state = Suspects(), make_seated()
    assert not suspects.is_guilty(state, is_alone=True)
    assert not suspects.is_guilty(state, is_alone=False)
    assert suspects.is_guilty(state, is_alone=True)


def test_rule_22_a_token_takes_lonely_strikes_away() -> None:
    suspects, state = Suspects(), make_seated()
    suspects.is_guilty(state, is_alone=True)
    give_token(state)
    suspects.is_guilty(state, is_alone=True)
    state.num_outputs_at_epoch = 1
    assert not suspects.is_guilty(state, is_alone=True)
