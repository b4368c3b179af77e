"""The file of keys: what it may hold, and refusals that show no key."""

import hashlib
import re
from pathlib import Path

import pytest
from textmill_router.http.api_keys import ApiKeyEntry
from textmill_router.http.key_file import KeyFileError, read_key_file

REPOSITORY = Path(__file__).parents[4]
KEY = "sk-0123456789"
DIGEST = hashlib.sha256(KEY.encode()).digest()


def test_a_file_gives_names_keys_weights_and_bounds(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "search"\nkey = "{KEY}"\n\n'
        f'[[key]]\nname = "batch"\nsha256 = "{DIGEST.hex().upper()}"\nweight = 2\nmin_priority = -10\n'
    )
    assert read_key_file(path) == [
        ApiKeyEntry("search", DIGEST, 1.0, 0),
        ApiKeyEntry("batch", DIGEST, 2.0, -10),
    ]


def test_the_example_of_the_page_is_a_file_of_keys(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", (REPOSITORY / "SECURITY.md").read_text(), re.DOTALL)
    path = tmp_path / "keys.toml"
    path.write_text(example)
    assert read_key_file(path) == [ApiKeyEntry("search", hashlib.sha256(b"sk-...").digest(), 2.0, -5)]


GOOD = f'[[key]]\nname = "a"\nkey = "{KEY}"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[key]]"),
        (KEY, "not TOML"),
        (f'[[key]]\nname = "a"\nkey = "{KEY}', "not TOML"),
        (f'{KEY} = "a"', "further fields at its top"),
        (f'{GOOD}"{KEY}" = 1', "none of name, key"),
        (f'[key]\nname = "a"\nkey = "{KEY}"', "no [[key]]"),
        (f'key = ["{KEY}"]', "no [[key]]"),
        (f'[[key]]\nkey = "{KEY}"', "`name` must"),
        (f'[[key]]\nname = "a b"\nkey = "{KEY}"', "`name` must"),
        ('[[key]]\nname = "a"', "either `key` or `sha256`"),
        (f'{GOOD}sha256 = "{DIGEST.hex()}"', "either `key` or `sha256`"),
        (f'[[key]]\nname = "a"\nsha256 = "{KEY}"', "`sha256` must be"),
        ('[[key]]\nname = "a"\nkey = ""', "`key` must"),
        (f'[[key]]\nname = "a"\nkey = " {KEY}"', "`key` must"),
        (f'[[key]]\nname = "a"\nkey = "{KEY}é"', "`key` must"),
        (f"{GOOD}weight = 0", "`weight` of a must be a number from 0.01 to 1000"),
        (f'{GOOD}weight = "{KEY}"', "`weight` of a must"),
        (f"{GOOD}weight = nan", "`weight` of a must"),
        (f"{GOOD}weight = true", "`weight` of a must"),
        (f"{GOOD}min_priority = 11", "`min_priority` of a must be a whole number from -10 to 10"),
        (f"{GOOD}min_priority = 0.5", "`min_priority` of a must"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_without_a_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeyFileError) as refused:
        read_key_file(path)
    assert words in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"keys\.toml cannot be read: No such file"):
        read_key_file(tmp_path / "keys.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_key_file(tmp_path / "keys.toml")
