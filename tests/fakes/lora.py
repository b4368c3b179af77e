"""Makes LoRA adapters with PEFT for models of a test, and computes with PEFT what is expected of them."""

# T tokens of a text, V vocabulary

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

# Large enough that an adapter changes every logit by more than any tolerance.
SPREAD = 0.1


@contextmanager
def peft_as_it_is() -> Iterator[None]:
    """Let PEFT call what transformers will take away, which this project cannot change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_adapter(
    model_dir: Path,
    folder: Path,
    *,
    seed: int = 1,
    auto_class: Any = AutoModelForCausalLM,
    save: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write an adapter with random A and B for the model of a folder, and return the adapter's folder.

    `config` has fields of PEFT's `LoraConfig`, `save` arguments of `save_pretrained`.
    """
    base = auto_class.from_pretrained(model_dir, dtype=torch.float32)
    with peft_as_it_is():
        model = get_peft_model(base, LoraConfig(**{"r": 8, "lora_alpha": 16, **config}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * SPREAD).to(dtype)
    with peft_as_it_is():
        model.save_pretrained(folder, **(save or {}))
    return folder


class PeftReference:
    """The model of a folder under PEFT, with some adapters, which are never merged."""

    def __init__(
        self, model_dir: Path, adapters: Sequence[Path], *, auto_class: Any = AutoModelForCausalLM, **how: Any
    ) -> None:
        base = auto_class.from_pretrained(model_dir, dtype=torch.float32, **how).eval()
        with peft_as_it_is():
            self._model: Any = PeftModel.from_pretrained(base, adapters[0], adapter_name="0")
            for number, adapter in enumerate(adapters[1:], start=1):
                self._model.load_adapter(adapter, adapter_name=str(number))
        self._model.eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], adapter: int | None, *, num_read: int = 0) -> torch.Tensor:
        """Return the logits `[T, V]` of a text, with the adapter of this number or None for the base model.

        With an encoder, T counts the tokens behind the `num_read` tokens that the encoder reads.
        """
        text = torch.tensor([list(tokens)])
        inputs = (
            {"input_ids": text[:, :num_read], "decoder_input_ids": text[:, num_read:]}
            if num_read
            else {"input_ids": text}
        )
        if adapter is None:
            with self._model.disable_adapter():
                found = self._model(**inputs, use_cache=False)
        else:
            self._model.set_adapter(str(adapter))
            found = self._model(**inputs, use_cache=False)
        logits: torch.Tensor = found.logits[0].float()
        return logits
