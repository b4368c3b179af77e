import pytest
from textmill_router.adapters.names import is_placeholder, name_fault

BASE = ("org/base",)


@pytest.mark.parametrize("name", ["a", "org/adapter", "Ärzte", "x" * 200, "a b", "v1.2"])
def test_good_names(name: str):
    assert name_fault(name, BASE) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "1 to 200 characters"),
        ("x" * 201, "found 201"),
        ("a\nb", "control characters"),
        ("a\x00", "control characters"),
        ("a\x7f", "control characters"),
        (" a", "blanks"),
        ("../a", "`..`"),
        ("a..b", "`..`"),
        ("/a", "begin with `/`"),
        (".", "between slashes"),
        ("a/./b", "between slashes"),
        ("org/base", "name of the base model"),
        ("tgi", "stands for the base model"),
        ("http://x", "stands for the base model"),
    ],
)
def test_bad_names_and_their_reasons(name: str, reason: str):
    fault = name_fault(name, BASE)
    assert fault is not None
    assert reason in fault


def test_urls_and_two_words_stand_for_the_base_model():
    assert is_placeholder("dummy")
    assert is_placeholder("https://host/v1")
    assert not is_placeholder("org/base")
