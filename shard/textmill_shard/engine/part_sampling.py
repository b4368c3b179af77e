"""Samples with rank 0 on another rank of a model whose ranks share a vocabulary (`part_desk.py`).

The rank has the sampling state of all slots and finds what its part of the logits gives. Rank 0 alone draws of what all
ranks give.
"""

# N rows that sample, V vocabulary

from collections import deque

import numpy as np
import torch

from textmill_shard.engine.part_desk import Gift, give_part
from textmill_shard.engine.rank_channel import Look, RankChannel
from textmill_shard.engine.slot_admission import admit_to
from textmill_shard.engine.upload import Upload
from textmill_shard.engine.wish_upload import WishUpload
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_selection import Selection, StepRows
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import Admit, IdArray

KEPT_GIFTS = 3  # rank 0 has at most two steps in flight


class PartSampling:
    """Another rank's side. Each step with rows that sample calls `prepare`, `give` and `note` once."""

    def __init__(
        self,
        *,
        sampler: Sampler,
        parts: PartSampler,
        finish_rules: FinishRules,
        channel: RankChannel,
        vocab_size: int,
    ) -> None:
        self._sampler = sampler
        self._parts = parts
        self._finish_rules = finish_rules
        self._channel = channel
        self._vocab_size = vocab_size
        self._selection: Selection = ()
        self._wishes: WishUpload | None = None
        self._rows: StepRows = ()
        self._number = 0
        self._gifts: deque[Gift] = deque(maxlen=KEPT_GIFTS)

    def admit(self, admit: Admit) -> None:
        """Write the sampling state of the request that takes a slot."""
        admit_to(self._sampler, self._finish_rules, admit)

    def prepare(self, slots_N: IdArray, upload: Upload) -> None:
        """Select the rows of each wish, which go to the device with `upload`."""
        self._selection = self._sampler.select(slots_N)
        self._wishes = WishUpload(self._selection, upload)

    def give(self, output: ForwardOutput) -> Gift:
        """Give this rank's part of the prepared step to rank 0, behind the masks that rank 0 sends."""
        assert self._wishes is not None
        self._rows = self._wishes.rows()
        self._take_masks()
        self._number += 1
        gift = Gift(self._number, give_part(self._parts, output, self._rows))
        self._gifts.append(gift)
        self._parts.exchange(gift.part)
        return gift

    def await_look(self) -> None:
        """Wait for the rows of the last step that rank 0 needs whole, and lay them together."""
        look = self._channel.receive().look
        assert look is not None, "rank 0 says first which rows it needs"
        self.follow(look)

    def follow(self, look: Look) -> None:
        """Lay together the rows that rank 0 needs whole."""
        if len(look.rows):
            gift = next(gift for gift in self._gifts if gift.number == look.number)
            self._parts.join_rows(gift.part, look.rows)

    def note(self, tokens_N: torch.Tensor) -> None:
        """Let the state of the rows take in the tokens (int64, on the device) that rank 0 has drawn."""
        self._sampler.append(self._rows, tokens_N)

    def _take_masks(self) -> None:
        """Wait for the masks of the rows with grammars. Rank 0 may look at rows of the step before until then."""
        grammar_rows = self._sampler.grammar_rows(self._selection)
        if grammar_rows is None:
            return
        entry = self._channel.receive()
        while entry.look is not None:
            self.follow(entry.look)
            entry = self._channel.receive()
        for slot, packed in zip(grammar_rows.slots_G.tolist(), entry.masks, strict=True):
            if not packed:
                continue  # the matcher of the row has failed, or its request has ended
            bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=self._vocab_size)
            self._sampler.grammar_mask.set_allowed(slot, bits.astype(bool))
