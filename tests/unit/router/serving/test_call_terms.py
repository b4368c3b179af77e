"""The terms of a call: caller, priority, salt and deadline. `contract/test_fairness.py` has the refusals over HTTP."""

import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.http.api_keys import ANYBODY, Caller
from textmill_router.http.call import Call
from textmill_router.request import Standing
from textmill_router.serving.call_terms import terms_of

SEARCH = Caller("search", b"salt", weight=2.0, min_priority=-3)


def call_of(caller: Caller) -> Call:
    return Call("id", arrival_s=100.0, caller=caller)


def test_terms_hold_the_caller_and_what_the_headers_say() -> None:
    headers = [(b"x-priority", b" -3 "), (b"x-request-timeout-ms", b"1500")]
    terms = terms_of(call_of(SEARCH), headers, 7, shares_prefixes=False)
    assert terms.caller is SEARCH
    assert terms.standing == Standing("search", 2.0, -3)
    assert (terms.cache_salt, terms.deadline_s) == (b"salt", 101.5)


def test_without_headers_the_body_counts_and_prefixes_are_shared_where_the_operator_says_so() -> None:
    terms = terms_of(call_of(SEARCH), [], 7, shares_prefixes=True)
    assert (terms.standing.priority, terms.cache_salt, terms.deadline_s) == (7, b"", None)
    assert terms_of(call_of(ANYBODY), [], None, shares_prefixes=False).standing == Standing()
    late = Caller("late", min_priority=4)
    assert terms_of(call_of(late), [], None, shares_prefixes=False).standing.priority == 4


@pytest.mark.parametrize(("priority", "field"), [(-4, "priority"), (-11, "priority"), (11, "priority")])
def test_a_priority_of_the_body_beyond_its_range_is_refused(priority: int, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        terms_of(call_of(SEARCH), [], priority, shares_prefixes=False)
    assert refused.value.field == field
