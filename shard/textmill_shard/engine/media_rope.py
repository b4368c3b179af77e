"""The rotary positions of prompts with images, by the model's own rule (M-RoPE)."""

# P tokens of a prompt

from collections.abc import Callable
from typing import TypeAlias

import torch

from textmill_shard.model.media import TokenSpan
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import Admit
from textmill_shard.slots.slot_table import RopeRow

RopeRule: TypeAlias = Callable[[Admit], RopeRow]
"""Returns the rotary positions of a prompt with items. Raises MediaFault where grids and spans do not fit."""


def rope_rule(runner: ModelRunner) -> RopeRule | None:
    """Return the rule of a model whose rotary positions are not the indices of tokens, and None for all others."""
    facts = runner.media
    if facts is None or not facts.has_rope_positions:
        return None
    names = facts.position_tensors

    def positions(admit: Admit) -> RopeRow:
        spans = [TokenSpan(span.start, span.num_tokens, span.first_row) for span in admit.media]
        grids = [{name: torch.tensor([span.grid]) for name in names} for span in admit.media]
        found = runner.rope_positions(admit.prompt_ids.tolist(), spans, grids)
        return RopeRow(positions_3P=found.positions_3P.numpy(), delta=found.delta)

    return positions
