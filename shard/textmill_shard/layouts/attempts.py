"""The ways to run a model, in the order in which the loader tries them. The fastest way comes first.

A new layout is one more line here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from textmill_shard.layouts.encoder_layout import arrange_encoder_decoder
from textmill_shard.layouts.interface_layout import arrange_native, arrange_plain, arrange_swapped
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions
from textmill_shard.layouts.padded_layout import arrange_padded, arrange_padded_swapped


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run a model."""

    # Raises UnsupportedModelError for a model that cannot run in this way, and then leaves the model's weights alone.
    arrange: Callable[[FilledModel, LayoutOptions], Layout]
    # Log line for a layout whose results differ from the model's; None: the layout does not take the weights.
    warning: str | None = None
    why_not_native: str | None = None  # the reason for the log; None: the reason of the native attempt counts
    swaps_layers: bool = False
    uses_own_attention: bool = False  # attention runs in the model's own code, and not through transformers' interface

    @property
    def takes_weights(self) -> bool:
        """Whether `arrange` consumes the model's weights, so that the next attempt needs them read again."""
        return self.warning is not None


_SWAPS_DIFFER = "module swaps do not fit: loading again without them"
_OWN_ATTENTION = "attention is the model's own code"

DECODER_ATTEMPTS = (
    Attempt(arrange_native, warning="the native decoder does not fit: loading again without it"),
    Attempt(arrange_swapped, warning=_SWAPS_DIFFER, swaps_layers=True),
    Attempt(arrange_plain),
    Attempt(
        arrange_padded_swapped,
        warning=_SWAPS_DIFFER,
        why_not_native=_OWN_ATTENTION,
        swaps_layers=True,
        uses_own_attention=True,
    ),
    Attempt(arrange_padded, why_not_native=_OWN_ATTENTION, uses_own_attention=True),
)
ENCODER_ATTEMPTS = (Attempt(arrange_encoder_decoder, why_not_native="there is an encoder"),)
