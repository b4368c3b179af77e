"""Decides whether a model fits, and reduces in a stated order what is asked of it until the model fits.

Requests beyond the slots can never run at once. The order of the rest: the context, down to `SHORT_CONTEXT`; the
requests at once, down to one; the tokens of a step, down to `LEAST_STEP_TOKENS`; then the context again. What was
reduced is told.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from textmill_launcher.plan.estimate import RankNeeds

BLOCK_TOKENS = 16
DEFAULT_FRACTIONS = {"cpu": 0.4, "cuda": 0.8}  # of the shard
DEFAULT_STEP_TOKENS = 1024  # of the shard
DEFAULT_SLOTS = 64  # of the shard
DEFAULT_CONCURRENT_REQUESTS = 128  # of the router
SHORT_CONTEXT = 2048
LEAST_STEP_TOKENS = 128
ADAPTER_SHARE = 0.05  # of the shard: of the bytes for keys and values, where adapters are asked for
USUAL_CONTEXT = 4096  # of a request, where nobody says how long requests are


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the server."""

    context_tokens: int  # of one request, prompt and output
    num_requests: int  # of that length, at once
    max_step_tokens: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class Fit:
    """How the wish, as far as it can be met, fills the memory of one rank. All bytes are of one rank."""

    fits: bool
    wish: Wish  # after the reductions
    needs: RankNeeds
    budget_bytes: int  # the share of memory that a rank may fill
    adapter_bytes: int  # set aside for adapters
    kv_bytes: int  # what is left for keys and values; negative where even the weights do not fit
    kv_tokens: int
    longest_context: int
    max_model_tokens: int  # that the positions allow; 0: unbounded
    num_at_once: int  # requests of the wish's context
    reductions: tuple[str, ...]


def fit(
    wish: Wish,
    needs_of: Callable[[Wish], RankNeeds],
    *,
    budget_bytes: int,
    max_model_tokens: int,
    kv_cache_bytes: int | None = None,
    adapter_bytes: int | None = 0,
) -> Fit:
    """Return how a wish fits after the reductions that it needs, or how the whole wish fails to fit.

    `needs_of` estimates what a rank takes for a wish. Without `adapter_bytes`, adapters get `ADAPTER_SHARE`.
    """

    def measure(wish: Wish) -> Fit:
        return _measure(wish, needs_of(wish), budget_bytes, max_model_tokens, kv_cache_bytes, adapter_bytes)

    asked = wish
    wish = replace(asked, num_requests=min(asked.num_requests, asked.num_slots))  # which no room changes
    found = whole = measure(wish)
    # A smaller step frees memory, which bytes that are given for keys and values do not take.
    for reduce in _STEPS if kv_cache_bytes is None else _STEPS_OF_GIVEN_BYTES:
        while not _is_met(found) and (smaller := reduce(found.wish, found)) is not None:
            found = measure(smaller)
    if not _is_met(found):
        return whole
    if found.wish.num_requests < wish.num_requests:  # later reductions may have made room again
        found = replace(found, wish=replace(found.wish, num_requests=min(wish.num_requests, found.num_at_once)))
    reductions = tuple(
        f"{words} from {getattr(asked, name)} to {getattr(found.wish, name)}"
        for name, words in _WORDS.items()
        if getattr(asked, name) != getattr(found.wish, name)
    )
    return replace(found, fits=True, reductions=reductions)


def _measure(
    wish: Wish,
    needs: RankNeeds,
    budget_bytes: int,
    max_model_tokens: int,
    given_bytes: int | None,
    adapter_bytes: int | None,
) -> Fit:
    left = budget_bytes - needs.weight_bytes - needs.state_bytes - needs.step_bytes - needs.media_bytes
    kv_bytes = left if given_bytes is None else given_bytes
    if adapter_bytes is None:
        adapter_bytes = int(max(kv_bytes, 0) * ADAPTER_SHARE)
    if given_bytes is None:
        kv_bytes -= adapter_bytes
    per_block = BLOCK_TOKENS * needs.kv_bytes_per_token
    num_blocks = kv_bytes // per_block - 1 if per_block else (wish.num_slots << 16 if left > 0 else 0)  # one is scratch
    kv_tokens = max(0, num_blocks) * BLOCK_TOKENS
    longest = min(kv_tokens, max_model_tokens or kv_tokens)
    blocks_of_request = -(-wish.context_tokens // BLOCK_TOKENS)
    at_once = min(wish.num_slots, max(0, num_blocks) // blocks_of_request)
    return Fit(
        fits=False,
        wish=wish,
        needs=needs,
        budget_bytes=budget_bytes,
        adapter_bytes=adapter_bytes,
        kv_bytes=kv_bytes,
        kv_tokens=kv_tokens,
        longest_context=longest,
        max_model_tokens=max_model_tokens,
        num_at_once=at_once,
        reductions=(),
    )


def _is_met(found: Fit) -> bool:
    return found.num_at_once >= found.wish.num_requests and found.longest_context >= found.wish.context_tokens


def _shorter(least: int) -> Callable[[Wish, Fit], Wish | None]:
    def reduce(wish: Wish, found: Fit) -> Wish | None:
        """Return the wish with the longest context, in whole blocks, that lets all requests run at once."""
        fitting = found.kv_tokens // BLOCK_TOKENS // wish.num_requests * BLOCK_TOKENS
        context = min(max(least, fitting), found.max_model_tokens or wish.context_tokens)
        return replace(wish, context_tokens=context) if context < wish.context_tokens else None

    return reduce


def _fewer(wish: Wish, found: Fit) -> Wish | None:
    number = max(1, found.num_at_once)
    return replace(wish, num_requests=number) if number < wish.num_requests else None


def _smaller_step(wish: Wish, found: Fit) -> Wish | None:
    half = max(LEAST_STEP_TOKENS, wish.max_step_tokens // 2)
    slots = min(wish.num_slots, half)
    return replace(wish, max_step_tokens=half, num_slots=slots) if half < wish.max_step_tokens else None


_WORDS = {
    "context_tokens": "the context (--max-total-tokens)",
    "num_requests": "the requests at once (--max-concurrent-requests)",
    "max_step_tokens": "the tokens of a step (--max-step-tokens)",
    "num_slots": "the slots (--num-slots)",
}
_STEPS: tuple[Callable[[Wish, Fit], Wish | None], ...] = (
    _shorter(SHORT_CONTEXT),
    _fewer,
    _smaller_step,
    _shorter(BLOCK_TOKENS),
)
_STEPS_OF_GIVEN_BYTES = (_shorter(SHORT_CONTEXT), _fewer, _shorter(BLOCK_TOKENS))
