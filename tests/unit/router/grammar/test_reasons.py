"""Messages of the grammar library become sentences; `test_compiler.py` has messages that the library gives today."""

import pytest
from textmill_router.grammar.reasons import MAX_SENTENCE, reason_of


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("NoExtensionBias", "no text matches it"),
        ("failed to compile JSON schema: Unsatisfiable schema: anyOf is empty", "no text matches it"),
        ("Unsatisfiable schema: minLength (5) is more", "no text matches it: minLength (5) is more"),
        (
            "Expected array for 'prefixItems' item, got {}",
            "each entry of `prefixItems` must be an array, found {}",
        ),
        ("lookarounds not supported yet; End in regex /a$b/", "the regular expression `a$b` has a `^` or `$` inside, "),
        ("lookarounds not supported yet; WordUnicode in regex /a\nb/", "has a word boundary"),
        ("regex parse error:\n    ab)\n      ^\nerror: unopened group", "wrong at `)`: unopened group"),
        ("regex parse error:\n    ab\n      ^\nerror: something", "wrong at its end: something"),
        ("regex parse error:\n~~~~\n1: a\n2: (\n   ^\n~~~~\nerror: unclosed group", "wrong at `(`: unclosed group"),
        ("what nobody\nhas  heard of", "what nobody has heard of"),
    ],
)
def test_message_becomes_a_sentence(message: str, sentence: str) -> None:
    found = reason_of(message)
    assert sentence in found
    assert "\n" not in found.replace("a\nb", "")


def test_long_message_is_cut() -> None:
    assert len(reason_of("x " * 5000)) <= MAX_SENTENCE + 4
    assert len(reason_of(f"lookarounds not supported yet; End in regex /{'x' * 5000}/")) < 300
