"""Keys are found by digest, keep their salts, and do not stay in memory."""

import hashlib

from textmill_router.http.api_keys import ApiKeyEntry, KeyRing, digest_of
from textmill_router.http.key_headers import shown_keys


def entry(name: str, key: str, weight: float = 1.0) -> ApiKeyEntry:
    return ApiKeyEntry(name, hashlib.sha256(key.encode()).digest(), weight)


def test_a_key_finds_its_holder_and_no_other_text_does() -> None:
    keys = KeyRing([entry("a", "one", 2.0), entry("b", "two")])
    found = keys.find(b"one")
    assert found is not None
    assert (found.name, found.weight) == ("a", 2.0)
    for wrong in (b"", b"One", b"one ", b"oneone", digest_of(b"one"), digest_of(b"one").hex().encode()):
        assert keys.find(wrong) is None


def test_salts_differ_by_key_and_by_process_and_outlive_a_replacement() -> None:
    keys = KeyRing([entry("a", "one"), entry("b", "two")])
    first, second = keys.find(b"one"), keys.find(b"two")
    assert first is not None
    assert second is not None
    assert first.salt != second.salt
    keys.replace([entry("renamed", "one", 3.0)])
    renamed = keys.find(b"one")
    assert renamed is not None
    assert (renamed.name, renamed.weight, renamed.salt) == ("renamed", 3.0, first.salt)
    assert keys.find(b"two") is None
    elsewhere = KeyRing([entry("a", "one")]).find(b"one")
    assert elsewhere is not None
    assert elsewhere.salt != first.salt


def test_no_key_and_no_plain_digest_of_a_key_is_kept() -> None:
    keys = KeyRing([entry("a", "a-secret-key")])
    kept = repr(vars(keys))
    assert "a-secret-key" not in kept
    assert repr(digest_of(b"a-secret-key")) not in kept


def test_all_keys_that_a_call_shows_are_seen() -> None:
    headers = [(b"authorization", b"Bearer one"), (b"x-own", b"two"), (b"x-api-key", b" three ")]
    assert shown_keys(headers, "x-own") == [b"one", b"two", b"three"]
    assert shown_keys(headers) == [b"one", b"three"]
    assert shown_keys([(b"authorization", b"Basic one")]) == []
