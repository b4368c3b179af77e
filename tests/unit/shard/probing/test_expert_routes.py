"""Runs that round in another order are compared with tokens that go to the same experts, and faults are still found."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.probing.expert_routes import HeldRoutes, RouteNotes, Routes, TextPart, TextRoutes
from textmill_shard.probing.start_check import check_against_probe
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.tiny_models import make_random_model
from tests.zoo.entry import SMALL

MIXTRAL = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
# Of this seed the router of a layer has two scores so near that rounding to bfloat16 decides between them.
UNDECIDED_SEED = 1
TEXT = torch.tensor([[11, 7, 202, 45]])
WHOLE = (TextPart(text=0, start=0, stop=4),)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MixtralConfig(**MIXTRAL), dtype=torch.float32).eval()


def run(model: Any, ids: torch.Tensor = TEXT) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


def noted(model: Any) -> TextRoutes:
    with RouteNotes(model) as notes:
        run(model)
    return notes.take()


def changed(routes: TextRoutes, *, factor: float) -> TextRoutes:
    """Return routes of which the second token goes to another second expert in the last layer, by other weights."""
    *others, last = routes
    before = routes[last]
    ids_NK, weights_NK = before.ids_NK.clone(), before.weights_NK.clone()
    ids_NK[1, 1] = next(expert for expert in range(4) if expert not in ids_NK[1].tolist())
    weights_NK[1] *= factor
    return {**{module: routes[module] for module in others}, last: Routes(ids_NK, weights_NK)}


def test_routes_of_each_layer_are_those_of_its_router(model: Any) -> None:
    routes = noted(model)
    mlps = [layer.mlp for layer in model.model.layers]
    assert list(routes) == [mlp.experts for mlp in mlps]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for mlp in mlps:
        mlp.gate.register_forward_hook(lambda _, __, output: seen.append((output[2], output[1])))
    run(model)
    for noted_routes, (ids_NK, weights_NK) in zip(routes.values(), seen, strict=True):
        assert torch.equal(noted_routes.ids_NK, ids_NK)
        assert torch.equal(noted_routes.weights_NK, weights_NK)


def test_a_run_with_its_own_routes_is_the_same_run_in_which_nothing_is_decided_by_rounding(model: Any) -> None:
    expected, routes = run(model), noted(model)
    with HeldRoutes(model.modules(), [routes]) as held:
        held.begin(WHOLE)
        assert torch.equal(run(model), expected)
    assert (held.num_others, held.are_explained) == (0, False)
    assert torch.equal(run(model), expected)  # no hook stays


def test_parts_of_texts_take_the_routes_of_their_tokens(model: Any) -> None:
    first = noted(model)
    second = changed(first, factor=1.0)
    with HeldRoutes(model.modules(), [first, second]) as held:
        held.begin((TextPart(text=1, start=1, stop=3), TextPart(text=0, start=0, stop=2)))
        with RouteNotes(model) as notes:  # behind the hooks of the context around it
            run(model)
    for module, routes in notes.take().items():
        assert torch.equal(routes.ids_NK, torch.cat([second[module].ids_NK[1:3], first[module].ids_NK[:2]]))


@pytest.mark.parametrize(("factor", "are_explained"), [(1.0, True), (1.05, True), (1.5, False)])
def test_another_choice_is_explained_by_nearly_the_same_weights(model: Any, factor: float, are_explained: bool) -> None:
    plain, routes = run(model), noted(model)
    with HeldRoutes(model.modules(), [changed(routes, factor=factor)]) as held:
        held.begin(WHOLE)
        assert not torch.equal(run(model), plain)
    assert held.num_others == 1
    assert held.are_explained == are_explained


def test_most_choices_must_be_the_same(model: Any) -> None:
    routes = dict(noted(model))
    last = list(routes)[-1]
    routes[last] = Routes((routes[last].ids_NK + 1) % 4, routes[last].weights_NK)
    with HeldRoutes(model.modules(), [routes]) as held:
        held.begin(WHOLE)
        run(model)
    assert held.num_others == 4  # of eight
    assert not held.are_explained


def test_a_step_of_other_tokens_is_not_held(model: Any) -> None:
    plain, routes = run(model), changed(noted(model), factor=1.0)
    with HeldRoutes(model.modules(), [routes]) as held:
        held.begin((TextPart(text=0, start=0, stop=3),))
        assert torch.equal(run(model), plain)
    assert not held.are_explained


def load(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[ModelRunner, list[str]]:
    make_random_model(AutoConfig.for_model("mixtral", **MIXTRAL), folder, seed=UNDECIDED_SEED)
    with caplog.at_level(logging.INFO, "textmill_shard"):
        runner = load_model(LoadOptions(model_dir=folder, dtype="bfloat16"), lambda phase, share: None)
    return runner, [record.message for record in caplog.records if record.name.startswith("textmill")]


def test_a_model_whose_routers_rounding_decides_keeps_its_swaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_by(monkeypatch, PlainKernels())
    _, messages = load(tmp_path, caplog)
    assert messages == ["rounding decides between experts", "model loaded"]


def test_a_layer_that_mixes_neighbours_is_noticed_beside_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_by(monkeypatch, PlainKernels())
    runner, _ = load(tmp_path, caplog)
    model: Any = next(runner.modules())
    texts = (TEXT[0].repeat(2), TEXT[0].flip(0).repeat(2)[:5])
    logits, routes = [], []
    model.set_attn_implementation("eager")
    for text in texts:
        with RouteNotes(model) as notes:
            logits.append(run(model, text.unsqueeze(0))[0, -1].float())
        routes.append(notes.take())
    model.set_attn_implementation("textmill_paged")

    def mix(module: nn.Module, args: Any, output: Any) -> Any:
        return output + 0.5 * output.roll(1, dims=1)

    model.model.layers[0].input_layernorm.register_forward_hook(mix)
    with pytest.raises(UnsupportedModelError, match="computed beside others in chunks"):
        check_against_probe(runner, texts=texts, expected_V_by_text=tuple(logits), routes_by_text=routes)
