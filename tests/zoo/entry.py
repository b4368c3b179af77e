"""The form of a row of the zoo, and the values that the tiny configs share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID

VOCAB_SIZE = 320
WINDOW = 12  # tokens; the longest prompts are four times as long
CHUNK = 16  # tokens, of chunked attention
# Difference of logits relative to the largest logit, in fp32, because sums are taken in another order.
TOLERANCE = 2e-5
# With the usual 0.02, small random models would give nearly flat logits, which hide differences.
WEIGHT_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One architecture. `config` has the fields of its tiny model's config."""

    name: str
    config: Mapping[str, Any]
    known_for: str  # the features that the tiny config switches on
    model_type: str = ""  # of config.json; the name when empty
    layout: str = "flat"
    tolerance: float = TOLERANCE
    reason: str = ""  # why the tolerance is looser than TOLERANCE
    rope_border: int | None = None  # tokens; requests of more take the long rotary table
    attention: str = "eager"  # transformers' implementation that the reference runs with
    longest_text: int | None = None  # tokens; the reference first reads such a text, which fixes its dynamic table
    # Changes of the config that each switch off a feature of `known_for`, and so must change the logits.
    neutral: tuple[Mapping[str, Any], ...] = ()
    has_experts: bool = False  # the tokens of each request go to several experts in every layer of experts
    is_hybrid: bool = False  # layers with a state and layers with keys and values
    num_layers_sharing_kv: int = 0  # layers that read the keys and values of another layer
    has_uneven_widths: bool = False  # keys are wider than values

    @property
    def type_of_config(self) -> str:
        return self.model_type or self.name


SMALL: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "initializer_range": WEIGHT_SPREAD,
}
NO_WINDOW: Mapping[str, Any] = {"sliding_window": 512}
ALL_ROTATES: Mapping[str, Any] = {"partial_rotary_factor": 1.0}
MULTI_HEAD = {**SMALL, "num_key_value_heads": 4}
SMALL_GPT: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "initializer_range": WEIGHT_SPREAD,
}
