"""Refusals in which each dialect fills in its own names of the fields."""

from textmill_router.errors import RuleBroken


def test_a_refusal_is_said_with_the_names_of_a_dialect() -> None:
    error = RuleBroken("`{field}` and `{seed}`: at most {most}", field="top_k", most=5)
    assert (str(error), error.field) == ("`top_k` and `seed`: at most 5", "top_k")
    error.reword({"top_k": "k"})
    assert (str(error), error.field) == ("`k` and `seed`: at most 5", "k")
    error.reword({"seed": "random_seed"})
    assert (str(error), error.field) == ("`top_k` and `random_seed`: at most 5", "top_k")


def test_texts_of_clients_are_no_names() -> None:
    error = RuleBroken("{text!r} is wrong, not `{field}`", field="stop", text="`{field}` {stop} {0}")
    error.reword({"stop": "end"})
    assert str(error) == "'`{field}` {stop} {0}' is wrong, not `end`"
