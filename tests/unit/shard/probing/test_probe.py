"""After a probe transformers' registries hold nothing of the model."""

import gc
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.probing.probe import probe_model
from transformers import AutoModelForCausalLM

from tests.fakes.tiny_models import make_tiny_llama


@pytest.mark.parametrize("has_broken_head", [False, True])
def test_a_model_that_was_probed_can_be_freed(tmp_path: Path, has_broken_head: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_llama(tmp_path))
    if has_broken_head:
        model.lm_head.weight.data = torch.zeros(3, 3)
    with pytest.raises(UnsupportedModelError) if has_broken_head else nullcontext():
        probe_model(model, texts=(torch.tensor([5, 6, 7]),), max_tokens=64)
    freed = weakref.ref(model.model.layers[0].self_attn)
    del model
    gc.collect()
    assert freed() is None


def test_layers_are_those_of_one_text_and_logits_those_of_the_model(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_llama(tmp_path))
    texts = (torch.tensor([5, 6, 7]), torch.tensor([8, 9]))
    found = probe_model(model, texts=texts, max_tokens=64)
    assert [finding.module for finding in found.layers] == [layer.self_attn for layer in model.model.layers]
    model.set_attn_implementation("eager")
    for text, logits_V in zip(texts, found.logits_V_by_text, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(logits_V, model(text.unsqueeze(0)).logits[0, -1], rtol=1e-5, atol=1e-5)
