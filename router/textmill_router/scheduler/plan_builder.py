"""Collects the changes of one loop turn and packs them into plans (rules 1 and 4 in docs/wire.md)."""

from textmill_router.scheduler.plan import Admit, Budget, Drop, Extend, Plan

MAX_PLAN_BYTES = 1 << 20
# Upper bounds of the encoded size without packed arrays: tags, lengths, varints, the sampling parameters of an admit.
_DROP_BYTES = 24
_EXTEND_BYTES = 40
_ADMIT_BYTES = 320
_BUDGET_BYTES = 32
_ITEM_BYTES = 4  # a token id, a block id
_BIAS_BYTES = 8  # an id and a value
_SEQUENCE_BYTES = 8  # the tag and the length of a bad sequence
_CHARACTER_BYTES = 4  # at most, in UTF-8


def _size_bytes(change: Drop | Extend | Admit) -> int:
    if isinstance(change, Drop):
        return _DROP_BYTES
    if isinstance(change, Extend):
        return _EXTEND_BYTES + _ITEM_BYTES * len(change.block_ids)
    request, parameters = change.request, change.request.parameters
    num_items = len(request.prompt_ids) + len(change.output_ids) + len(change.block_ids) + len(request.stop_ids)
    num_characters = 0 if parameters.grammar is None else len(parameters.grammar.text)
    grammar_bytes = _CHARACTER_BYTES * num_characters
    bias_bytes = _BIAS_BYTES * len(parameters.sampling.logit_bias)
    sampling = parameters.sampling
    num_items += len(sampling.dry_breaker_ids) + len(sampling.allowed_ids) + sum(map(len, sampling.bad_sequences))
    num_items += len(sampling.forced_first_ids) + len(sampling.forced_last_ids)
    sequence_bytes = _SEQUENCE_BYTES * len(sampling.bad_sequences)
    return _ADMIT_BYTES + _ITEM_BYTES * num_items + bias_bytes + sequence_bytes + grammar_bytes


class PlanBuilder:
    """Holds the changes since the last plan. Each epoch has a builder of its own, which numbers its plans 1, 2, 3 ...

    Across plans and inside a plan the order is drops, extends, admits. The budget travels in the first plan, because
    the shard composes no step without a budget.
    """

    def __init__(self, budget: Budget, max_plan_bytes: int = MAX_PLAN_BYTES) -> None:
        self._budget: Budget | None = budget
        self._max_plan_bytes = max_plan_bytes
        self._num_plans = 0
        self._drops: list[Drop] = []
        self._extends: list[Extend] = []
        self._admits: list[Admit] = []

    @property
    def num_plans(self) -> int:
        """The number of the last plan that was built; 0 = none yet."""
        return self._num_plans

    def drop(self, drop: Drop) -> None:
        """Add the drop of a slot's occupant."""
        self._drops.append(drop)

    def extend(self, extend: Extend) -> None:
        """Add blocks for a slot. No drop of the same turn may name that slot."""
        self._extends.append(extend)

    def admit(self, admit: Admit) -> None:
        """Add the admission of a request."""
        self._admits.append(admit)

    def build(self) -> tuple[Plan, ...]:
        """The plans of this turn, at most 1 MiB each unless one admit is longer; empty when nothing has changed."""
        if not (self._drops or self._extends or self._admits or self._budget):
            return ()
        plans = []
        part = _PlanPart(self._budget)
        changes: list[Drop | Extend | Admit] = [*self._drops, *self._extends, *self._admits]
        for change in changes:
            size = _size_bytes(change)
            if part.num_changes and part.size_bytes + size > self._max_plan_bytes:
                plans.append(self._number(part))
                part = _PlanPart(None)
            part.add(change, size)
        plans.append(self._number(part))
        self._budget = None
        self._drops, self._extends, self._admits = [], [], []
        return tuple(plans)

    def _number(self, part: "_PlanPart") -> Plan:
        self._num_plans += 1
        return Plan(
            number=self._num_plans,
            drops=tuple(part.drops),
            extends=tuple(part.extends),
            admits=tuple(part.admits),
            budget=part.budget,
        )


class _PlanPart:
    """One plan in the making."""

    def __init__(self, budget: Budget | None) -> None:
        self.budget = budget
        self.size_bytes = _BUDGET_BYTES
        self.num_changes = 0
        self.drops: list[Drop] = []
        self.extends: list[Extend] = []
        self.admits: list[Admit] = []

    def add(self, change: Drop | Extend | Admit, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self.num_changes += 1
        if isinstance(change, Drop):
            self.drops.append(change)
        elif isinstance(change, Extend):
            self.extends.append(change)
        else:
            self.admits.append(change)
