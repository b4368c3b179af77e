"""Each row of the zoo exercises the features that it names, as transformers' own models show on the zoo's prompts.

`test_zoo.py` checks the kinds of layers, the widths and the sides of the border, because the rows run there.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.zoo.drive import CHUNK_TOKENS, prompts_of_zoo, reference_logits
from tests.zoo.entry import CHUNK, TOLERANCE, WINDOW, ZooEntry
from tests.zoo.table import ZOO

# The least difference that a switched-off feature must make, so that the comparison of the zoo sees the feature.
CLEARLY = 100 * TOLERANCE
PROMPTS = prompts_of_zoo()


def make_reference(entry: ZooEntry, changes: Mapping[str, Any] | None = None) -> Any:
    config = AutoConfig.for_model(entry.type_of_config, **{**entry.config, **(changes or {})})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=entry.attention, experts_implementation="eager"
    ).eval()


def of_rows(name: str) -> Any:
    entries = [entry for entry in ZOO if getattr(entry, name)]
    assert entries
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


def test_prompts_are_longer_than_windows_and_chunks_on_both_sides() -> None:
    lengths = sorted(len(prompt) for prompt in PROMPTS)
    assert lengths[0] < min(WINDOW, CHUNK, CHUNK_TOKENS)
    assert lengths[1] > max(WINDOW, CHUNK, CHUNK_TOKENS)
    assert lengths[-1] > 3 * max(WINDOW, CHUNK, CHUNK_TOKENS)


@of_rows("neutral")
def test_logits_change_when_a_feature_is_switched_off(entry: ZooEntry) -> None:
    """Long rotary tables change the longest prompt and short tables the shortest, so both prompts are compared."""
    texts = (max(PROMPTS, key=len), min(PROMPTS, key=len))
    whole = make_reference(entry)
    if entry.longest_text is not None:
        reference_logits(whole, [0] * entry.longest_text)
    expected = [reference_logits(whole, text) for text in texts]
    for changes in entry.neutral:
        without = make_reference(entry, changes)
        without.load_state_dict(whole.state_dict(), strict=True)
        found = [reference_logits(without, text) for text in texts]
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        assert difference > CLEARLY, (changes, difference)


@of_rows("has_experts")
def test_each_request_goes_to_several_experts_in_every_layer(entry: ZooEntry) -> None:
    model = make_reference(entry)
    for prompt in PROMPTS:
        by_layer = experts_of(model, prompt)
        assert by_layer
        assert all(len(chosen) >= 3 for chosen in by_layer.values()), by_layer


def experts_of(model: nn.Module, prompt: list[int]) -> dict[str, set[int]]:
    """Return the experts to which the tokens of a prompt go, by layer of experts."""
    chosen: dict[str, set[int]] = {}

    def note(name: str, ids: torch.Tensor) -> None:
        chosen.setdefault(name, set()).update(ids.flatten().tolist())

    handles = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind.endswith("Experts") and kind != "Llama4TextExperts":
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[1])))
        elif kind == "Llama4Router":  # its experts compute all tokens and get weights alone
            handles.append(module.register_forward_hook(lambda _, __, out, name=name: note(name, out[1].argmax(-1))))
    reference_logits(model, prompt)
    for handle in handles:
        handle.remove()
    return chosen


def test_other_rows_with_a_state_are_known_to_have_no_attention() -> None:
    assert {entry.name for entry in ZOO if entry.layout == "state" and not entry.is_hybrid} == {"mamba", "mamba2"}


@of_rows("num_layers_sharing_kv")
def test_layers_share_what_others_stored(entry: ZooEntry) -> None:
    model = make_reference(entry)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.tensor([PROMPTS[1]]), past_key_values=cache, use_cache=True)
    num_storing = sum(getattr(layer, "keys", None) is not None for layer in cache.layers)
    assert num_storing == model.config.num_hidden_layers - entry.num_layers_sharing_kv


@of_rows("rope_border")
def test_prompts_lie_on_both_sides_of_the_border(entry: ZooEntry) -> None:
    assert entry.rope_border is not None
    assert {len(prompt) > entry.rope_border for prompt in PROMPTS} == {True, False}
