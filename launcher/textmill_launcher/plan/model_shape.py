"""Reads from a config.json the sizes that decide what keys, values and states take. No name of a model is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill_launcher.errors import LaunchError, ModelFilesError
from textmill_launcher.exit_codes import ExitCode

# Names of one size in the configs of different families, the usual name first. Behind an encoder only the decoder keeps
# keys and values, so the names of a decoder's sizes come before those of the whole model, which may be the encoder's.
_NAMES = {
    "layers": ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "mlp": ("decoder_ffn_dim", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "positions": (
        *("max_position_embeddings", "n_positions", "max_seq_len"),
        *("max_sequence_length", "seq_length", "n_ctx"),
    ),
}
_STATE_KINDS = ("mamba", "linear_attention", "conv", "recurrent")  # of layers without keys and values


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model. Elements are numbers, whatever their type."""

    model_type: str
    dtype: str | None  # in which the checkpoint is stored
    hidden: int
    mlp: int  # width of the feed-forward layers through which a token goes, experts together
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    kv_elements_per_token: int  # over all layers
    state_elements_per_slot: int | None  # over all layers; None: the layers keep a state whose size is not known
    max_model_tokens: int  # 0: unbounded
    is_tied: bool  # the head is the embedding
    has_encoder: bool
    takes_images: bool = False

    def kv_elements_of_rank(self, num_shard: int) -> int:
        """Return the elements per token of one rank. With fewer key/value heads than ranks, ranks share a head."""
        if not self.num_kv_heads:
            return self.kv_elements_per_token
        heads_of_rank = max(1, self.num_kv_heads // num_shard)
        return self.kv_elements_per_token * heads_of_rank // self.num_kv_heads

    def working_num_shards(self, most: int = 64) -> tuple[int, ...]:
        """Return the numbers of shards among which the model can be divided."""
        if self.has_encoder or self.state_elements_per_slot != 0 or not self.num_heads:
            return (1,)
        return tuple(size for size in range(1, min(most, self.num_heads) + 1) if self._divides_heads(size))

    def check_heads(self, num_shard: int) -> None:
        """Raises CannotDivide where the heads cannot be shared out, which no shard could load."""
        if self.num_heads and not self._divides_heads(num_shard):
            working = ", ".join(map(str, self.working_num_shards()))
            raise CannotDivide(
                f"{self.num_heads} attention heads with {self.num_kv_heads} key/value heads cannot be divided among "
                f"{num_shard} shards; --num-shard can be {working}"
            )

    def check_division(self, num_shard: int) -> None:
        """Raises CannotDivide for a number of shards that is not among `working_num_shards`."""
        self.check_heads(num_shard)
        if num_shard not in self.working_num_shards():
            raise CannotDivide(
                f"models of type {self.model_type} cannot be divided among {num_shard} shards; use --num-shard 1"
            )

    def _divides_heads(self, num_shard: int) -> bool:
        kv = self.num_kv_heads
        return self.num_heads % num_shard == 0 and (kv % num_shard == 0 or num_shard % kv == 0)


class CannotDivide(LaunchError):
    """The model cannot be divided among so many shards."""

    exit_code = ExitCode.UNSUPPORTED_MODEL


class WrongConfigValue(ModelFilesError):
    """A text stands where config.json has a number, so that no model can be built."""


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the sizes of the text part of a config.

    Raises `ModelFilesError` where a size is missing, and `WrongConfigValue` where a size is a text.
    """
    whole, config = config, config.get("text_config") or config
    layers, heads, hidden = (_size(config, name) for name in ("layers", "heads", "hidden"))
    has_encoder = bool(config.get("is_encoder_decoder"))
    if not layers or not hidden or not config.get("vocab_size"):
        raise ModelFilesError("config.json does not say the number of layers, the hidden size or the vocabulary")
    kinds = _kinds_of_layers(config, layers)
    num_attending = sum(1 for kind in kinds if kind != "state")
    kv_heads = _kv_heads(config, heads)
    return ModelShape(
        model_type=str(config.get("model_type") or whole.get("model_type") or "unknown"),
        dtype=config.get("dtype") or config.get("torch_dtype") or whole.get("dtype") or whole.get("torch_dtype"),
        hidden=hidden,
        mlp=_mlp(config, hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab=int(config["vocab_size"]),
        kv_elements_per_token=num_attending * _kv_elements(config, hidden, heads, kv_heads) if heads else 0,
        state_elements_per_slot=_state_elements(config, hidden, kinds),
        max_model_tokens=_size(config, "positions"),
        is_tied=bool(config.get("tie_word_embeddings", whole.get("tie_word_embeddings", False))),
        has_encoder=has_encoder,
        takes_images=isinstance(whole.get("vision_config"), Mapping),
    )


def _size(config: Mapping[str, Any], name: str) -> int:
    for key in _NAMES[name]:
        value = config.get(key)
        if isinstance(value, str):
            raise WrongConfigValue(f"config.json has {value!r} as {key}, where a whole number is wanted")
        if isinstance(value, list) and value:
            value = max(value)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("new_decoder_architecture"):  # such models repeat keys and values for each head before they keep them
        return heads
    if config.get("multi_query"):
        return 1
    return _size(config, "kv_heads") or heads


def _kv_elements(config: Mapping[str, Any], hidden: int, heads: int, kv_heads: int) -> int:
    """Return the elements that one attention layer keeps per token."""
    if config.get("kv_lora_rank"):  # keys and values are kept as the heads see them
        key = int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
        return heads * (key + int(config["v_head_dim"]))
    head_dim = int(config.get("head_dim") or config.get("kv_channels") or config.get("d_kv") or hidden // heads)
    return 2 * kv_heads * head_dim


def _kinds_of_layers(config: Mapping[str, Any], layers: int) -> Sequence[str]:
    """Return `attention`, `state` or `both` for each layer."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(listed, list) and len(listed) == layers:
        return ["state" if str(kind) in _STATE_KINDS else "attention" for kind in listed]
    if config.get("attn_layer_indices") is not None:
        return ["attention" if index in config["attn_layer_indices"] else "state" for index in range(layers)]
    if config.get("attn_layer_period"):
        period, offset = int(config["attn_layer_period"]), int(config.get("attn_layer_offset") or 0)
        return ["attention" if index % period == offset else "state" for index in range(layers)]
    if config.get("full_attention_interval"):
        interval = int(config["full_attention_interval"])
        return ["attention" if (index + 1) % interval == 0 else "state" for index in range(layers)]
    has_scan = any(name in config for name in ("state_size", "mamba_d_state", "ssm_state_size"))
    if has_scan:
        return ["both" if "num_key_value_heads" in config and "mamba_d_ssm" in config else "state"] * layers
    return ["attention"] * layers


def _mlp(config: Mapping[str, Any], hidden: int) -> int:
    """Return the width of the feed-forward layers that a token goes through."""
    per_token = config.get("num_experts_per_tok") or config.get("num_experts_per_token") or config.get("moe_topk")
    has_experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    width = _size(config, "mlp") or 4 * hidden
    if per_token and has_experts:
        return int(per_token) * int(config.get("moe_intermediate_size") or width)
    return width


def _state_elements(config: Mapping[str, Any], hidden: int, kinds: Sequence[str]) -> int | None:
    """Return the elements that one request's states take over all layers, by the formulas of the families.

    A scan keeps its last inputs of the convolution and a matrix, of channels by states. The gated delta rule keeps a
    matrix for each value head, of key by value widths, and the last inputs of its convolution.
    """
    num_states = sum(1 for kind in kinds if kind != "attention")
    if not num_states:
        return 0
    expand = int(config.get("mamba_expand") or config.get("expand") or 2)
    states = config.get("mamba_d_state") or config.get("state_size") or config.get("ssm_state_size")
    if config.get("linear_num_value_heads"):
        key = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
        value = int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"])
        kernel = int(config.get("linear_conv_kernel_dim") or 4)
        return num_states * ((2 * key + value) * kernel + value * int(config["linear_key_head_dim"]))
    if config.get("conv_L_cache"):
        return num_states * hidden * int(config["conv_L_cache"])
    if states is None:
        return None
    kernel = int(config.get("mamba_d_conv") or config.get("conv_kernel") or 4)
    has_rank = "time_step_rank" in config and "num_heads" not in config  # a scan of the first kind
    width = int(config["intermediate_size"]) if has_rank and config.get("intermediate_size") else expand * hidden
    channels = int(config.get("mamba_d_ssm") or width)
    groups = config.get("mamba_n_groups") or config.get("n_groups")
    convolved = channels + (2 * int(groups) * int(states) if groups else 0)
    return num_states * (convolved * kernel + channels * int(states))
