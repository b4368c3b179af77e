"""Which requests take the best id of the model's own scores in each step, so that no other score is needed."""

from dataclasses import replace

from textmill_shard.slots.plan import Admit
from textmill_shard.slots.sampling_params import SamplingParams

_NOTHING = SamplingParams()


def takes_best_id(admit: Admit) -> bool:
    """Whether nothing of a request changes scores, draws, or asks for other ids. It may ask for log-probabilities."""
    params = admit.sampling
    if params.do_sample or admit.grammar is not None or admit.beams is not None:
        return False
    # What only a draw reads, and what is filled in later, counts for nothing.
    rest = replace(
        params,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        typical_p=1.0,
        seed=0,
        max_new_tokens=0,
        end_ids=(),
        wants_logprobs=False,
    )
    if params.dry_multiplier == 0.0:
        rest = replace(
            rest, dry_base=_NOTHING.dry_base, dry_allowed_length=_NOTHING.dry_allowed_length, dry_breaker_ids=()
        )
    return rest == _NOTHING
