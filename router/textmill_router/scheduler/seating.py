"""Chooses which waiting requests get a slot now (rules 11, 14, 16, 22 in docs/wire.md)."""

from itertools import islice

from textmill_router.scheduler.account import Account
from textmill_router.scheduler.epoch import Epoch
from textmill_router.scheduler.fair_shares import FairShares
from textmill_router.scheduler.paces import Paces
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.suspects import Suspects
from textmill_router.scheduler.waiting_queue import WaitingQueue

LOOK_AHEAD_REQUESTS = 8


def admit_waiting(
    queue: WaitingQueue, epoch: Epoch, suspects: Suspects, paces: Paces, shares: FairShares, now: float
) -> list[RequestState]:
    """Seat waiting requests in order, until one of them does not fit. `paces` observes those that leave the queue.

    Returns the requests that left the queue without a slot, because their prompts could not be read in time.

    No request overtakes a request that lacks room. A request that is held may be overtaken: it waits for a running
    request to compute its prefix, or for the sequence that computes its prompt (rule 11), or for its images to be on
    the shard (rule 33).
    """
    if not len(queue):
        return []
    epoch.media.begin_round()
    late: list[RequestState] = []
    admitted: list[RequestState] = []
    passed_over: set[Account | None] = set()
    if queue.has_several_callers and epoch.slots.can_seat():
        shares.charge_outputs()
    for state in queue.in_turn(passed_over):
        if not epoch.slots.can_seat() or suspects.is_prefill_closed():
            break
        if not epoch.wants_prefill():
            if not shares.has_several:
                break
            # The long prompts of one caller must not keep the others out until these prompts are read.
            if any(other.is_in_prefill and other.account is state.account for other in epoch.slots.occupants()):
                passed_over.add(state.account)
                continue
        if suspects.is_suspect(state) and epoch.slots.is_any_in_prefill():
            break
        if state.waits_for_leader:
            continue
        if state.hold_hash is not None and epoch.cache.is_being_written(state.hold_hash):
            continue
        hits = epoch.find_hits(state)
        if not state.wants_prompt_logprobs:
            state.hold_hash = epoch.cache.hold_hash(state, len(hits))
            if state.hold_hash is not None:
                continue
        if state.request.deadline_s is not None and _is_too_late(state, len(hits) * epoch.pool.block_size, paces, now):
            late.append(state)
            continue
        if state.media_spans and not epoch.media.may_seat(state, epoch.num_cached_tokens(state, hits), now):
            continue
        if not epoch.grants.can_admit(state, hits, epoch.num_running):
            break
        epoch.seat(state, hits, now)
        state.charge_prompt()
        if suspects.is_suspect(state):
            suspects.enter(state)
        admitted.append(state)
    num_tokens = 0
    if queue.num_with_media:
        _look_ahead(queue, epoch, now)
    for state in admitted:
        queue.remove(state)
        num_tokens += state.num_tokens
    for state in late:
        queue.remove(state)
    paces.queue.note(num_tokens, is_any_left=len(queue) > 0, now=now)
    return late


def _look_ahead(queue: WaitingQueue, epoch: Epoch, now: float) -> None:
    """Let the images of the requests that come next be brought to the shard while these requests wait for room."""
    for state in islice(queue, LOOK_AHEAD_REQUESTS):
        if state.media_spans and state.slot is None and not state.waits_for_leader:
            hits = epoch.find_hits(state)
            epoch.media.may_seat(state, epoch.num_cached_tokens(state, hits), now)


def _is_too_late(state: RequestState, num_cached_tokens: int, paces: Paces, now: float) -> bool:
    """Whether the first token could not come by the request's deadline, were the prompt read at the best speed."""
    deadline_s = state.request.deadline_s
    if deadline_s is None or state.output_ids:
        return False
    return now + paces.prefill.least_s(state.num_tokens - num_cached_tokens) > deadline_s
