"""What a stage is: the verbs that each feature which changes scores has."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class SlotText:
    """The ids of a request when it is seated. The prompt has at least one; an encoder's part is not in it."""

    prompt_ids: IdArray
    output_ids: IdArray = field(default_factory=lambda: NO_IDS)


class Stage(Protocol):
    """Its state lies on the device in arrays by slot: a function of what the slot was admitted with, and of the tokens
    appended since (rule 18). Only slots whose parameters it wants are ever handed to it."""

    def wants(self, params: SamplingParams) -> bool:
        """Whether this request asks for the stage."""
        ...

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        """Begin anew for the request that takes the slot."""
        ...

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        """Change the scores (float32) of these rows in place."""
        ...

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        """Take in the token that each of these rows sampled. Returns the slots that ask for the stage no longer."""
        ...
