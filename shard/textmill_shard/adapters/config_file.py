"""Reads `adapter_config.json` as PEFT writes it, and refuses by name all that would change what is computed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmill_shard.model.adapter import AdapterRefused

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_NESTING = 64
MAX_PATTERNS = 10_000
MAX_PATTERN_CHARACTERS = 1024
MAX_ALPHA = 1e6

# Fields that say how the adapter was made, and change nothing of what the adapter computes. The tensors of the file
# say which modules are adapted, so that the fields which chose them need no reading.
_HISTORY = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out"),
        *("use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights"),
        *("megatron_core", "qalora_group_size", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        *("runtime_config", "ensure_weight_tying", "bias"),
    }
)
# Fields that ask for other mathematics, with the way out.
_MERGE = "merge the adapter into the weights of a local folder (PeftModel.merge_and_unload) and serve that folder"
_REFUSED = {
    "use_dora": ("DoRA scales each output by a learned magnitude", _MERGE),
    "lora_bias": ("the adapter has biases of its own", _MERGE),
    "modules_to_save": ("the adapter replaces whole layers", _MERGE),
    "target_parameters": ("the adapter changes parameters (of experts) and not layers", _MERGE),
    "trainable_token_indices": ("the adapter replaces rows of the embedding", _MERGE),
    "alora_invocation_tokens": ("an activated LoRA acts only behind its invocation tokens", "train a plain LoRA"),
    "use_qalora": ("QALoRA pools the inputs of a layer", _MERGE),
    "use_bdlora": ("block-diagonal LoRA divides the matrices", _MERGE),
    "layer_replication": ("the adapter belongs to a model with repeated layers", "serve that model"),
    "arrow_config": ("Arrow mixes several adapters for each token", _MERGE),
    "monteclora_config": ("Monte Carlo LoRA draws its matrices", _MERGE),
    "kasa_config": ("KaSA changes the weights of the base model", _MERGE),
    "megatron_config": ("the adapter's layers are those of Megatron", "save the adapter from a model of transformers"),
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PLAIN_INITS = ("gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of the file that decides what the adapter computes."""

    rank: int
    alpha: float
    has_root_scale: bool  # alpha / sqrt(rank) instead of alpha / rank (rsLoRA)
    rank_of_pattern: Mapping[str, int]  # in the order of the file
    alpha_of_pattern: Mapping[str, float]
    base_model: str  # as the training named it, "" when it did not
    ties_weights: bool  # the adapter of the head is meant for the embedding too, where the two are tied

    def scale(self, *, rank: int, alpha: float) -> float:
        """Return the factor of a module's product."""
        return alpha / math.sqrt(rank) if self.has_root_scale else alpha / rank


def read_config(content: bytes, *, max_rank: int) -> AdapterConfig:
    """Read the bytes of the file. Raises AdapterRefused with the name of the field."""
    fields = _parse(content)
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise AdapterRefused(f"{CONFIG_NAME} says peft_type {_shown(kind)}: only LORA adapters are loaded")
    for name, (reason, way_out) in _REFUSED.items():
        if _is_on(fields.get(name)):
            raise AdapterRefused(f"{CONFIG_NAME} has {name} = {_shown(fields[name])}: {reason}; {way_out}")
    bias = fields.get("bias", "none")
    if bias not in ("none", None):
        raise AdapterRefused(f"{CONFIG_NAME} has bias = {_shown(bias)}: the adapter replaces biases; {_MERGE}")
    _check_init(fields.get("init_lora_weights", True))
    unknown = sorted(name for name in set(fields) - _HISTORY - set(_REFUSED) if _is_on(fields[name]))
    if unknown:
        raise AdapterRefused(
            f"{CONFIG_NAME} has {unknown[0]} = {_shown(fields[unknown[0]])}, which this server does not know and which "
            "may change what the adapter computes; " + _MERGE
        )
    return AdapterConfig(
        rank=_rank(fields.get("r", 8), name="r", max_rank=max_rank),
        alpha=_alpha(fields.get("lora_alpha", 8), name="lora_alpha"),
        has_root_scale=_boolean(fields, "use_rslora"),
        rank_of_pattern={
            key: _rank(value, name=f"rank_pattern[{_shown(key)}]", max_rank=max_rank)
            for key, value in _patterns(fields, "rank_pattern").items()
        },
        alpha_of_pattern={
            key: _alpha(value, name=f"alpha_pattern[{_shown(key)}]")
            for key, value in _patterns(fields, "alpha_pattern").items()
        },
        base_model=base if isinstance(base := fields.get("base_model_name_or_path"), str) else "",
        ties_weights=_boolean(fields, "ensure_weight_tying"),
    )


def _parse(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"{CONFIG_NAME} is no JSON: {type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise AdapterRefused(f"{CONFIG_NAME} must hold a JSON object")
    level: list[Any] = [fields]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return fields
    raise AdapterRefused(f"{CONFIG_NAME} is nested more than {MAX_NESTING} levels deep")


def _check_init(kind: Any) -> None:
    if isinstance(kind, bool) or kind is None:
        return
    name = kind.lower() if isinstance(kind, str) else ""
    if name.startswith(_CHANGES_BASE):
        raise AdapterRefused(
            f"{CONFIG_NAME} has init_lora_weights = {_shown(kind)}: training changed the base model's weights too, so "
            "the adapter is right on those alone; save the adapter as a plain LoRA (PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge"
        )
    if name not in _PLAIN_INITS:
        raise AdapterRefused(f"{CONFIG_NAME} has init_lora_weights = {_shown(kind)}, which is not known here; {_MERGE}")


def _patterns(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name) or {}
    if not isinstance(found, dict):
        raise AdapterRefused(f"{CONFIG_NAME} has {name} = {_shown(found)}, wanted an object")
    if len(found) > MAX_PATTERNS:
        raise AdapterRefused(f"{CONFIG_NAME} has {len(found)} keys in {name}, at most {MAX_PATTERNS} are read")
    for key in found:
        if len(key.encode("utf-8", "surrogatepass")) > MAX_PATTERN_CHARACTERS:
            raise AdapterRefused(f"{CONFIG_NAME} has a key of more than {MAX_PATTERN_CHARACTERS} bytes in {name}")
    return found


def _rank(value: Any, *, name: str, max_rank: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterRefused(f"{CONFIG_NAME} has {name} = {_shown(value)}, wanted a whole number from 1 to {max_rank}")
    if value > max_rank:
        raise AdapterRefused(
            f"{CONFIG_NAME} has {name} = {_shown(value)}, and ranks up to {max_rank} are loaded (--max-lora-rank)"
        )
    return value


def _alpha(value: Any, *, name: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_ALPHA <= value <= MAX_ALPHA:
        raise AdapterRefused(f"{CONFIG_NAME} has {name} = {_shown(value)}, wanted a number")
    return float(value)


def _boolean(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise AdapterRefused(f"{CONFIG_NAME} has {name} = {_shown(value)}, wanted true or false")
    return bool(value)


def _is_on(value: Any) -> bool:
    return value not in (None, False, 0, "", [], {})


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "..."
