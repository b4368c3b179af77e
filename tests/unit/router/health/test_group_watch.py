"""When a group of shards counts as away, and when as lost for good."""

import pytest
from textmill_router.health.group_watch import MAX_SILENCE_S, MAX_STEP_S, GroupSigns


@pytest.mark.parametrize(
    ("signs", "is_away", "is_given_up"),
    [
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=0.0, step_limit_s=30), False, False),
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=30.0, step_limit_s=30), False, False),
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=30.1, step_limit_s=30), True, False),
        (GroupSigns(is_linked=False, silent_s=3.0, stepless_s=0.0, step_limit_s=30), True, False),
        (GroupSigns(is_linked=False, silent_s=MAX_SILENCE_S + 1, stepless_s=0.0, step_limit_s=30), True, True),
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=MAX_STEP_S + 1, step_limit_s=30), True, True),
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=2.0, step_limit_s=30, is_overdue=True), True, False),
        # Where a measured step takes longer than any constant, the measurement counts.
        (GroupSigns(is_linked=True, silent_s=0.5, stepless_s=MAX_STEP_S + 1, step_limit_s=900), False, False),
    ],
)
def test_signs(signs: GroupSigns, is_away: bool, is_given_up: bool) -> None:
    assert (signs.is_away, signs.is_given_up) == (is_away, is_given_up)
