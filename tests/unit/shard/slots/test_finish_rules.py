import pytest
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import FLAG_EOS, FLAG_FINISHED, FLAG_LENGTH, FLAG_STOP_ID
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import SlotTable

from tests.fakes.step_harness import BLOCK_SIZE, EOS_ID, NUM_BLOCKS, NUM_SLOTS, admit, ids

OTHER_EOS_ID = 40
RULES = FinishRules([EOS_ID, OTHER_EOS_ID])


def flags_after(token: int, *, output: list[int], max_new: int = 9, min_new: int = 0, **changes: object) -> int:
    """Return the flags of a request that sampled `token` after `output`."""
    table = SlotTable(num_slots=NUM_SLOTS, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
    sampling = SamplingParams(min_new_tokens=min_new)
    table.admit(admit(1, [1, 2], output=output, max_new=max_new, sampling=sampling, **changes))  # type: ignore[arg-type]
    table.append(ids([1]), ids([token]))
    return int(RULES.flags(table, ids([1]), table.num_tokens[[1]], ids([token]))[0])


@pytest.mark.parametrize(
    ("token", "output", "changes", "flags"),
    [
        (5, [], {}, 0),
        (EOS_ID, [], {}, FLAG_FINISHED | FLAG_EOS),
        (OTHER_EOS_ID, [], {}, FLAG_FINISHED | FLAG_EOS),
        (EOS_ID, [], {"ignore_eos": True}, 0),
        (5, [], {"stop_ids": [4, 5]}, FLAG_FINISHED | FLAG_STOP_ID),
        (6, [], {"stop_ids": [4, 5]}, 0),
        (EOS_ID, [], {"stop_ids": [EOS_ID], "ignore_eos": True}, FLAG_FINISHED | FLAG_STOP_ID),
        (5, [1, 2], {"max_new": 3}, FLAG_FINISHED | FLAG_LENGTH),
        (EOS_ID, [1, 2], {"max_new": 3}, FLAG_FINISHED | FLAG_LENGTH | FLAG_EOS),
        (5, [1], {"max_new": 3}, 0),
        (EOS_ID, [1], {"min_new": 2}, 0),
        (EOS_ID, [1, 1], {"min_new": 2}, FLAG_FINISHED | FLAG_EOS),
        (5, [1], {"min_new": 2, "stop_ids": [5]}, 0),
    ],
)
def test_what_ends_a_request(token: int, output: list[int], changes: dict[str, object], flags: int) -> None:
    assert flags_after(token, output=output, **changes) == flags  # type: ignore[arg-type]


def test_ids_to_mask_before_min_new_tokens() -> None:
    assert RULES.ending_ids([7, EOS_ID], ignore_eos=False) == (OTHER_EOS_ID, EOS_ID, 7)
    assert RULES.ending_ids([7], ignore_eos=True) == (7,)
