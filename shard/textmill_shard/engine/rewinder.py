"""Puts slots right whose last token was drawn again when their next step had been launched (overlap)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from textmill_shard.engine.launched_step import LaunchedStep
from textmill_shard.engine.rank_channel import NO_REWINDS, Rewinds
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.slots.plan import IdArray


class Rewinder:
    """Notes the right tokens, and gives them to the slots. The thread of the step loop alone calls the rewinder."""

    def __init__(self, executor: StepExecutor, row_sampler: RowSampler) -> None:
        self._executor = executor
        self._row_sampler = row_sampler
        self._rewound: dict[int, tuple[int, bool]] = {}  # by slot: its right token, and whether that was too late

    def clear(self) -> None:
        """Forget all notes, because a new epoch begins."""
        self._rewound.clear()

    def note(self, slots: IdArray, tokens: IdArray, in_flight: Sequence[LaunchedStep]) -> None:
        """Note that these slots have other tokens than those with which their next step may have been launched."""
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            later_steps = [later for later in in_flight if slot in later.step.slots_R]
            for later in later_steps:
                later.vain_slots = (*later.vain_slots, slot)
            self._rewound[slot] = token, bool(later_steps)

    def apply(self) -> Rewinds:
        """Give slots the token that was drawn again. The draws of the vain steps have been launched before."""
        if not self._rewound:
            return NO_REWINDS
        executor, table = self._executor, self._executor.table
        slots = np.array(list(self._rewound), dtype=np.int64)
        tokens = np.array([token for token, _ in self._rewound.values()], dtype=np.int64)
        is_launched = np.array([was_launched for _, was_launched in self._rewound.values()], dtype=bool)
        self._rewound.clear()
        executor.rewind(slots, tokens, is_launched)
        outputs: list[IdArray] = []
        for slot in slots.tolist():
            # The state of a slot is a function of its admit and of its tokens (rule 18).
            admit, num_tokens = table.admit_of(slot), int(table.num_tokens[slot])
            output_ids = table.tokens_of(slot, start=len(admit.prompt_ids), end=num_tokens).copy()
            self._row_sampler.admit(replace(admit, output_ids=output_ids))
            outputs.append(output_ids)
        return Rewinds(slots=slots, tokens=tokens, is_launched=is_launched, output_ids=tuple(outputs))
