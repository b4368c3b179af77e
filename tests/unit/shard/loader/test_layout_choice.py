"""The ways to run a model are tried in order; weights are read again only where a way has taken them."""

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.attempts import DECODER_ATTEMPTS, ENCODER_ATTEMPTS, Attempt
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions
from textmill_shard.loader.layout_choice import Choice, choose_layout
from textmill_shard.model.runner import ModelRunner
from torch import nn

OPTIONS = LayoutOptions(
    num_slots=1, parallel=TensorParallel(), kernels=None, attention=ReferenceAttention(), wants_native_decoder=True
)
NATIVE, SWAPPED, PLAIN, PADDED_SWAPPED, PADDED = range(5)


class World:
    """Ways that cannot be built or do not agree, and how often the weights were read."""

    def __init__(self, *, not_built: set[int] | None = None, differ: set[int] | None = None) -> None:
        self.not_built = not_built or set()
        self.differ = differ or set()
        self.tried: list[int] = []
        self.num_fills = 0
        self.models: list[weakref.ref[nn.Module]] = []

    def choose(self) -> Choice:
        attempts = [
            Attempt(
                self.arrange(number),
                warning=real.warning,
                why_not_native=real.why_not_native,
                swaps_layers=real.swaps_layers,
                uses_own_attention=real.uses_own_attention,
            )
            for number, real in enumerate(DECODER_ATTEMPTS)
        ]
        return choose_layout(attempts, OPTIONS, fill=self.fill, make_runner=self.make_runner)

    def arrange(self, number: int) -> Callable[[FilledModel, LayoutOptions], Layout]:
        def build(filled: FilledModel, options: LayoutOptions) -> Layout:
            self.tried.append(number)
            if number in self.not_built:
                raise UnsupportedModelError(f"{number} is not built")
            nothing = cast(Any, None)
            return Layout(str(number), nothing, (), (), 0, adapters=nothing, linears={}, is_native=number == NATIVE)

        return build

    def fill(self) -> FilledModel:
        assert all(model() is None for model in self.models), "two models stand in memory"
        self.num_fills += 1
        model = nn.Linear(1, 1)
        model.forward = model.forward  # a model that holds itself, as those with a tap do
        self.models.append(weakref.ref(model))
        return FilledModel(model, texts=(), device=torch.device("cpu"), max_tokens=0, rope_border=None)

    def make_runner(self, filled: FilledModel, layout: Layout) -> ModelRunner:
        if int(layout.name) in self.differ:
            raise UnsupportedModelError(f"{layout.name} differs")
        return cast(Any, None)


def test_the_first_that_agrees_is_taken() -> None:
    world = World()
    choice = world.choose()
    assert (choice.layout.name, choice.why_not_native) == (str(NATIVE), None)
    assert (world.tried, world.num_fills) == ([NATIVE], 1)


def test_an_only_way_has_its_own_reason_for_not_being_native() -> None:
    world = World()
    attempt = Attempt(world.arrange(PLAIN), why_not_native="there is an encoder")
    choice = choose_layout([attempt], OPTIONS, fill=world.fill, make_runner=world.make_runner)
    assert choice.why_not_native == "there is an encoder"


def test_ways_that_leave_the_weights_are_tried_on_the_same_model(caplog: pytest.LogCaptureFixture) -> None:
    world = World(not_built={NATIVE, SWAPPED, PADDED_SWAPPED}, differ={PLAIN})
    choice = world.choose()
    assert choice.layout.name == str(PADDED)
    assert choice.why_not_native == "attention is the model's own code"
    assert (world.tried, world.num_fills) == ([NATIVE, SWAPPED, PLAIN, PADDED_SWAPPED, PADDED], 1)
    assert caplog.records == []


def test_weights_are_read_again_after_each_way_that_took_them(caplog: pytest.LogCaptureFixture) -> None:
    gc.disable()  # what frees the first model is the choice, and not chance
    try:
        world = World(differ={NATIVE, SWAPPED})
        with caplog.at_level(logging.WARNING):
            choice = world.choose()
    finally:
        gc.enable()
    assert (choice.layout.name, choice.why_not_native) == (str(PLAIN), "it does not agree with the model")
    assert (world.tried, world.num_fills) == ([NATIVE, SWAPPED, PLAIN], 3)
    assert [(record.message, record.__dict__["reason"]) for record in caplog.records] == [
        ("the native decoder does not fit: loading again without it", f"{NATIVE} differs"),
        ("module swaps do not fit: loading again without them", f"{SWAPPED} differs"),
    ]


def test_swaps_that_differ_once_are_not_tried_in_the_padded_layout() -> None:
    world = World(not_built={NATIVE}, differ={SWAPPED, PLAIN})
    assert world.choose().layout.name == str(PADDED)
    assert (world.tried, world.num_fills) == ([NATIVE, SWAPPED, PLAIN, PADDED], 2)
    world = World(not_built={NATIVE, SWAPPED, PLAIN}, differ={PADDED_SWAPPED})
    assert world.choose().layout.name == str(PADDED)
    assert world.num_fills == 2


def test_both_kinds_of_attention_are_named_when_none_agrees() -> None:
    world = World(not_built={NATIVE, SWAPPED, PADDED_SWAPPED, PADDED}, differ={PLAIN})
    with pytest.raises(UnsupportedModelError) as caught:
        world.choose()
    assert str(caught.value) == f"{PLAIN} differs; nor by the model's own attention code: {PADDED} is not built"


def test_the_plainest_way_of_each_kind_of_attention_comes_last_and_takes_no_weights() -> None:
    for attempts in (DECODER_ATTEMPTS, ENCODER_ATTEMPTS):
        plainest = {attempt.uses_own_attention: attempt for attempt in attempts}
        assert not any(attempt.takes_weights or attempt.swaps_layers for attempt in plainest.values())
