"""Chooses which waiting requests get a slot now (rules 11, 14, 16, 22 in docs/wire.md)."""

from textmill_router.scheduler.epoch import Epoch
from textmill_router.scheduler.queue_pace import QueuePace
from textmill_router.scheduler.suspects import Suspects
from textmill_router.scheduler.waiting_queue import WaitingQueue


def admit_waiting(queue: WaitingQueue, epoch: Epoch, suspects: Suspects, pace: QueuePace, now: float) -> None:
    """Seat waiting requests in order, until one of them does not fit. `pace` observes those that leave the queue.

    No request overtakes a request that lacks room. A request that is held may be overtaken (rule 11): it waits for a
    running request to compute its prefix, or for the sequence that computes its prompt.
    """
    if not len(queue):
        return
    admitted = []
    for state in queue:
        if not epoch.slots.can_seat() or not epoch.wants_prefill() or suspects.is_prefill_closed():
            break
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
        if not epoch.grants.can_admit(state, hits, epoch.num_running):
            break
        epoch.seat(state, hits, now)
        if suspects.is_suspect(state):
            suspects.enter(state)
        admitted.append(state)
    num_tokens = 0
    for state in admitted:
        queue.remove(state)
        num_tokens += state.num_tokens
    pace.note(num_tokens, is_any_left=len(queue) > 0, now=now)
