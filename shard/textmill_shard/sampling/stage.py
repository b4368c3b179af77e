"""The interface of a stage: the four verbs of each feature that changes scores."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class SlotText:
    """The ids of a request when a slot admits the request.

    Where the model has an encoder, the ids that the encoder reads are in `encoder_ids` alone. Placeholders of images
    are not among these ids, so that a prompt of images alone has no id.
    """

    prompt_ids: IdArray
    output_ids: IdArray = field(default_factory=lambda: NO_IDS)
    encoder_ids: IdArray = field(default_factory=lambda: NO_IDS)


class Stage(Protocol):
    """A feature that changes scores, with state of its own on the device, in arrays by slot.

    The state of a slot is a function of the arguments of its `admit`, and of the tokens appended since (rule 18). A
    stage is called for those slots only whose parameters the stage wants.
    """

    def wants(self, params: SamplingParams) -> bool:
        """Whether this request asks for the stage."""
        ...

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        """Write the state of the request that takes the slot."""
        ...

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        """Change the scores (float32) of these rows in place."""
        ...

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        """Take in the token that each of these rows sampled. Returns the slots that no longer need the stage."""
        ...
