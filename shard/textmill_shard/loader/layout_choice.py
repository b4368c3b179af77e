"""Tries the ways to run a model one after the other, until the results of one way are those of the model."""

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
    """The layout that is chosen, with its model and runner."""

    filled: FilledModel
    layout: Layout
    runner: ModelRunner
    why_not_native: str | None  # None: the native decoder is taken


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The reason why a way is not taken: a text, because an exception would keep the model alive."""

    attempt: Attempt
    reason: str
    took_weights: bool  # whether the attempt has consumed the model's weights


def choose_layout(
    attempts: Sequence[Attempt], options: LayoutOptions, *, fill: Fill, make_runner: MakeRunner
) -> Choice:
    """Return the first attempt whose runner agrees with the model.

    `fill` reads the weights, and reads them again after a layout that took them and did not agree; `make_runner`
    raises UnsupportedModelError where a layout does not agree. Raises UnsupportedModelError with the reasons.
    """
    refusals: list[_Refusal] = []
    filled: FilledModel | None = None
    for attempt in attempts:
        # Swaps that differ in one layout are not tried in another, because a trial costs reading the weights again.
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
            gc.collect()  # frees the model, whose parts hold each other; else two models would stand in memory
            trim_heap()
    # The last reason of each kind of attention counts, because the last way is the plainest.
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
    native = refusals[0]  # the native decoder is tried first
    return "it does not agree with the model" if native.took_weights else native.reason
