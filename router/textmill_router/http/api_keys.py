"""The API keys that the server takes: who holds a key, and how a key that a call shows is found."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of one API key, without the key.

    `name` may stand in logs and metrics. `salt` keeps the caller's cached answers and prefixes apart from those of
    others; it follows from the key, and no key follows from it. `weight` is the caller's share of the tokens computed,
    beside the weights of the others, and `share` the caller's part of all weights together. `min_priority` is the best
    priority that the caller may ask for, because a smaller priority goes first.
    """

    name: str = ""
    salt: bytes = b""
    weight: float = 1.0
    min_priority: int = -10
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ApiKeyEntry:
    """One key of the settings. `sha256` is the SHA-256 digest of the key, so that no key stays in memory."""

    name: str
    sha256: bytes
    weight: float = 1.0
    min_priority: int = 0


# Stands for every call of a server without keys.
ANYBODY = Caller()


def digest_of(key: bytes) -> bytes:
    """Return the SHA-256 digest of a key."""
    return hashlib.sha256(key).digest()


class KeyRing:
    """The keys of the server, of which each is kept as a digest under a secret of this process.

    A call's key is digested in the same way before it is compared. Whoever measures times learns at most something of
    digests that he cannot compute, and nothing of the keys.
    """

    def __init__(self, entries: Sequence[ApiKeyEntry]) -> None:
        self._secret = secrets.token_bytes(_DIGEST_BYTES)
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        self.replace(entries)

    def replace(self, entries: Sequence[ApiKeyEntry]) -> None:
        """Take these keys, and no other key from now on. A key that stays keeps its salt."""
        callers = {}
        total_weight = sum(entry.weight for entry in entries)
        for entry in entries:
            digest = self._digest(b"find", entry.sha256)
            salt = self._digest(b"salt", entry.sha256)
            callers[digest] = (
                digest,
                Caller(entry.name, salt, entry.weight, entry.min_priority, entry.weight / total_weight),
            )
        self._callers = callers

    def find(self, key: bytes) -> Caller | None:
        """Return the holder of a key, or None if the server does not take the key."""
        digest = self._digest(b"find", digest_of(key))
        known, caller = self._callers.get(digest, (b"", None))
        return caller if hmac.compare_digest(known, digest) else None

    def _digest(self, purpose: bytes, sha256: bytes) -> bytes:
        return hashlib.blake2b(sha256, digest_size=_DIGEST_BYTES, key=self._secret, person=purpose).digest()
