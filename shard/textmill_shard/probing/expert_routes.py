"""Notes to which experts the tokens of a text go, and holds the tokens of another run to the same experts.

Where two scores of a router are nearly equal, rounding decides to which expert a token goes, and in half precision such
a choice may change the logits by a third of their size. So two runs that round in another order can only be compared
where the tokens of both go to the same experts.
"""

# N tokens, K experts of a token

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# What transformers' decorator `use_experts_implementation` sets, and what all modules under it have.
_MARKS = ("has_gate", "has_bias", "is_transposed", "num_experts", "_apply_gate", "down_proj")
# Largest difference of the weights of two choices, relative to the largest weight, where the scores were nearly equal.
_NEAR = 0.1
# Largest share of choices that may differ. Beyond, a router gets other inputs, or computes something else.
_MOST_OTHERS = 0.25


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts of the tokens of a text in one module of experts, and their weights."""

    ids_NK: torch.Tensor  # int64
    weights_NK: torch.Tensor


TextRoutes: TypeAlias = Mapping[nn.Module, Routes]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Tokens start .. stop - 1 of one text, in one step."""

    text: int
    start: int
    stop: int


def is_experts(module: nn.Module) -> bool:
    """Whether a module computes experts that a router has chosen."""
    return all(hasattr(module, mark) for mark in _MARKS)


class RouteNotes:
    """Within this context, notes the routes of each text that the model computes alone."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if is_experts(module)]
        self._found: dict[nn.Module, list[Routes]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_pre_hook(self._note, with_kwargs=True) for module in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> TextRoutes:
        """Return the routes since the last call. A module that ran several times, or not by routes, has none."""
        found = {module: notes[0] for module, notes in self._found.items() if len(notes) == 1}
        self._found = {}
        return found

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        if len(given) == 3:  # hidden states, experts and weights; each family has names of its own for them
            self._found.setdefault(module, []).append(Routes(given[1].clone(), given[2].clone()))


class HeldRoutes:
    """Within this context, each token of a step goes to the experts to which the token went when its text ran alone."""

    def __init__(self, modules: Iterable[nn.Module], routes_by_text: Sequence[TextRoutes]) -> None:
        self._modules = [module for module in modules if is_experts(module)]
        self._routes_by_text = routes_by_text
        self._parts: Sequence[TextPart] = ()
        self._handles: list[RemovableHandle] = []
        self._num_choices = 0
        self._are_near = True
        self.num_others = 0  # choices that would have been other ones

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_pre_hook(self._hold, with_kwargs=True) for module in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def are_explained(self) -> bool:
        """Whether the routers chose the same experts, or in some places others with nearly the same weights."""
        return self._are_near and 0 < self.num_others <= _MOST_OTHERS * self._num_choices

    def begin(self, parts: Sequence[TextPart]) -> None:
        """Tell the parts of texts of which the next step consists, in the order of the step."""
        self._parts = parts

    def _hold(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = [*args, *kwargs.values()]
        wanted = self._wanted(module)
        if wanted is None or len(given) != 3 or given[1].shape != wanted.ids_NK.shape:
            self._are_near = False  # the step computes its texts in another order, or not together
            return None
        self._compare(Routes(given[1], given[2]), wanted)
        given[1:] = wanted.ids_NK, wanted.weights_NK
        return tuple(given[: len(args)]), dict(zip(kwargs, given[len(args) :], strict=True))

    def _wanted(self, module: nn.Module) -> Routes | None:
        noted = [(self._routes_by_text[part.text].get(module), part) for part in self._parts]
        ids, weights = [], []
        for routes, part in noted:
            if routes is None:
                return None
            ids.append(routes.ids_NK[part.start : part.stop])
            weights.append(routes.weights_NK[part.start : part.stop])
        return Routes(torch.cat(ids), torch.cat(weights)) if ids else None

    def _compare(self, own: Routes, wanted: Routes) -> None:
        is_other_N = (own.ids_NK.sort(-1).values != wanted.ids_NK.sort(-1).values).any(-1)
        own_NK, wanted_NK = (routes.weights_NK.float().sort(-1).values for routes in (own, wanted))
        differences_N = (own_NK - wanted_NK).abs().amax(-1) / wanted_NK.abs().amax(-1)
        self._are_near &= bool((differences_N <= _NEAR).all())
        self._num_choices += len(is_other_N)
        self.num_others += int(is_other_N.sum())
