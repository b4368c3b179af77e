"""Writes the sampling state of a request that takes a slot, equally on every rank that samples."""

from dataclasses import replace

from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import Admit
from textmill_shard.slots.sampling_params import SamplingParams


def admit_to(sampler: Sampler, finish_rules: FinishRules, admit: Admit) -> None:
    """Write the state of the slot, which is a function of the admit alone (rule 18)."""
    params = replace(
        admit.sampling,
        end_ids=finish_rules.ending_ids(admit.stop_ids, ignore_eos=admit.ignore_eos),
        max_new_tokens=admit.max_new_tokens,
        has_grammar=admit.grammar is not None,
    )
    if admit.beams is not None:
        params = SamplingParams()  # the search itself looks at the scores
    encoder_ids = admit.prompt_ids[: admit.num_encoder_tokens]
    sampler.admit(admit.slot, params, SlotText(admit.text_ids, admit.output_ids, encoder_ids))
