"""Tries the ways to run a model one after the other, until one computes what the model computes."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.layouts.attempts import Attempt
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions
from textmill_shard.model.runner import ModelRunner

log = logging.getLogger(__name__)

Fill = Callable[[], FilledModel]
MakeRunner = Callable[[FilledModel, Layout], ModelRunner]


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that is taken."""

    filled: FilledModel
    layout: Layout
    runner: ModelRunner
    why_not_native: str | None  # None: the native decoder is taken


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a way is not taken. A text and no exception, because an exception would keep the model alive."""

    attempt: Attempt
    reason: str
    took_weights: bool  # the model's weights are gone


def choose_layout(
    attempts: Sequence[Attempt], options: LayoutOptions, *, fill: Fill, make_runner: MakeRunner
) -> Choice:
    """Take the first attempt whose runner agrees with the model.

    `fill` reads the weights, and reads them again after a layout that took them and did not agree; `make_runner`
    raises UnsupportedModelError where a layout does not agree. Raises UnsupportedModelError with the reasons.
    """
    refusals: list[_Refusal] = []
    filled: FilledModel | None = None
    for attempt in attempts:
        # Swaps that differ once are not tried in another layout: to find out costs reading the weights again.
        if attempt.swaps_layers and any(refusal.attempt.swaps_layers for refusal in refusals if refusal.took_weights):
            continue
        if filled is None:
            filled = fill()
        result = _try(attempt, filled, options, make_runner)
        if isinstance(result, _Runs):
            return Choice(filled, result.layout, result.runner, _why_not_native(result.layout, attempt, refusals))
        refusals.append(result)
        if result.took_weights:
            log.warning(attempt.warning, extra={"reason": result.reason})
            filled = None
            gc.collect()  # parts of a model hold each other: without this two models would stand in memory
            trim_heap()
    # Of each kind of attention the last reason, which is that of the plainest way.
    reasons = {refusal.attempt.uses_own_attention: refusal.reason for refusal in refusals}
    raise UnsupportedModelError("; nor by the model's own attention code: ".join(reasons.values()))


@dataclass(frozen=True, slots=True)
class _Runs:
    """A layout that agrees with the model."""

    layout: Layout
    runner: ModelRunner


def _try(attempt: Attempt, filled: FilledModel, options: LayoutOptions, make_runner: MakeRunner) -> _Runs | _Refusal:
    try:
        layout = attempt.arrange(filled, options)
    except UnsupportedModelError as reason:
        return _Refusal(attempt, str(reason), took_weights=False)
    try:
        return _Runs(layout, make_runner(filled, layout))
    except UnsupportedModelError as reason:
        return _Refusal(attempt, str(reason), took_weights=attempt.takes_weights)


def _why_not_native(layout: Layout, taken: Attempt, refusals: Sequence[_Refusal]) -> str | None:
    if layout.is_native or taken.why_not_native is not None:
        return taken.why_not_native
    native = refusals[0]  # the native decoder is tried before all that leave the reason to it
    return "it does not agree with the model" if native.took_weights else native.reason
