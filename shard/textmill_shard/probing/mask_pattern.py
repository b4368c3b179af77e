"""Finds from a model's own mask predicate how far a layer looks back: at all tokens, a window, or a chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch

# (batch, head, query index, key index) -> whether the query may see the key; all four are tensors of indices.
MaskPredicate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

MAX_PROBED_TOKENS = 1 << 18  # a window of more tokens looks like no window


class UnknownMaskError(Exception):
    """The predicate is neither causal attention, nor a window, nor a chunk."""


@dataclass(frozen=True, slots=True)
class MaskPattern:
    """Which earlier tokens a token sees. A token always sees itself."""

    window_tokens: int | None = None  # the token sees this many last tokens, itself included; None = no window
    chunk_tokens: int | None = None  # the token sees earlier tokens of its own chunk of this many; None = no chunks

    def first_seen(self, query: int) -> int:
        first = 0
        if self.window_tokens is not None:
            first = max(first, query - self.window_tokens + 1)
        if self.chunk_tokens is not None:
            first = max(first, query // self.chunk_tokens * self.chunk_tokens)
        return first

    def sees_span(self, mask_LL: torch.Tensor, span: range) -> bool | None:
        """Return whether the tokens of a span see each other in a bool mask, beside what the pattern shows.

        None: the mask shows something else.
        """
        queries = torch.arange(mask_LL.shape[0], device=mask_LL.device)
        first_seen = torch.tensor([self.first_seen(query) for query in queries.tolist()], device=mask_LL.device)
        is_near_LL = queries >= first_seen[:, None]
        causal_LL = (queries <= queries[:, None]) & is_near_LL
        if torch.equal(mask_LL, causal_LL):
            return False
        is_span_L = (queries >= span.start) & (queries < span.stop)
        is_span_LL = is_span_L & is_span_L[:, None]
        # Models differ in the tokens of a span that lie before the window of a later token of the span.
        forms = (causal_LL | is_span_LL, causal_LL | (is_span_LL & is_near_LL))
        return True if any(torch.equal(mask_LL, form_LL) for form_LL in forms) else None


def num_asked(max_tokens: int) -> int:
    """Return the length of the text about which predicates are asked. Texts have at most `max_tokens`; 0 = any."""
    return min(max_tokens or MAX_PROBED_TOKENS, MAX_PROBED_TOKENS)


def find_mask_pattern(predicate: MaskPredicate, *, max_tokens: int, device: torch.device | None = None) -> MaskPattern:
    """Find the pattern by asking the predicate at queries spread over `max_tokens`. Raises UnknownMaskError.

    `device` is that of the model, because predicates calculate with tensors of the model; None is the CPU.
    """
    num_tokens = num_asked(max_tokens)
    # Neighbours at the far end show a window, whose border moves from query to query, or a chunk, whose border stands.
    spread = {num_tokens * part // 16 for part in range(1, 16)}
    queries = sorted({0, 1, 2, 3, *spread, *range(max(0, num_tokens - 8), num_tokens)} & set(range(num_tokens)))
    first_seen = {query: _first_seen(predicate, query, num_tokens, device) for query in queries}

    candidates = [MaskPattern()]
    last = queries[-1]
    candidates.append(MaskPattern(window_tokens=last - first_seen[last] + 1))
    borders = gcd(*first_seen.values())
    if borders > 1:
        candidates.append(MaskPattern(chunk_tokens=_chunk_of(predicate, borders, num_tokens, device)))
    for pattern in candidates:
        if all(pattern.first_seen(query) == first for query, first in first_seen.items()):
            return pattern
    raise UnknownMaskError(f"a mask that is neither causal, window nor chunk (first keys seen: {first_seen})")


def _first_seen(predicate: MaskPredicate, query: int, num_tokens: int, device: torch.device | None) -> int:
    """Return the first key that a query sees.

    Raises UnknownMaskError unless the query sees all keys from the first one to its own, and no key behind its own.
    """
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    keys = torch.arange(min(query + 64, num_tokens), device=device)
    seen = predicate(zero, zero, torch.full_like(keys, query), keys).expand(keys.shape).nonzero().flatten()
    if seen.numel() == 0 or int(seen[-1]) != query or int(seen[-1] - seen[0]) + 1 != seen.numel():
        raise UnknownMaskError(f"token {query} sees {seen.numel()} tokens that are not one run up to itself")
    return int(seen[0])


def _chunk_of(predicate: MaskPredicate, borders: int, num_tokens: int, device: torch.device | None) -> int:
    """Return the chunk: the smallest query whose first key is not 0, if that number divides all borders."""
    low, high = 0, num_tokens - 1
    while low < high:
        middle = (low + high) // 2
        if _first_seen(predicate, middle, num_tokens, device) > 0:
            high = middle
        else:
            low = middle + 1
    return low if borders % low == 0 else borders
