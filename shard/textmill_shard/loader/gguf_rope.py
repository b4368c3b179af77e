"""Rotary positions of a GGUF file: their base, and how they are scaled, as transformers' `rope_parameters` say it.

Keys and tensors are llama.cpp's. It divides the frequency of each pair of dimensions by the numbers of `rope_freqs`
(Llama 3.1), or of `rope_factors_short` and `rope_factors_long` (Phi 3), which the file holds as tensors.
"""

# P pairs of dimensions that are rotated together

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_header import GgufHeader, Value

_FREQS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = frozenset({_FREQS, _SHORT, _LONG})
_SCALING = "rope.scaling."
ROPE_KEYS = frozenset(
    {
        *("rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear"),
        *(f"{_SCALING}{key}" for key in ("type", "factor", "original_context_length", "finetuned", "attn_factor")),
        *(f"{_SCALING}yarn_{key}" for key in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")),
    }
)
_DEFAULT_BASE = 10000.0  # llama.cpp's, where a file leaves the base open
# The borders of Llama 3.1 to 3.3, in wavelengths per trained length, and that length in tokens.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_LENGTH = 1.0, 4.0, 8192


def complete_rope(settings: dict[str, Any], values: Mapping[str, Value], header: GgufHeader) -> None:
    """Set `rope_parameters` of the settings. Raises ModelFilesError for a scaling that cannot be said there."""
    by_layer_type = settings.get("rope_parameters")
    if not by_layer_type:
        if any(key in values for key in ROPE_KEYS - {"rope.dimension_count"}):
            raise ModelFilesError(f"{header.path} scales rotary positions, which {settings['model_type']} has none of")
        return
    is_split = "full_attention" in by_layer_type
    parameters = dict(by_layer_type["full_attention"] if is_split else by_layer_type)
    parameters["rope_theta"] = values.get("rope.freq_base", _DEFAULT_BASE)
    _set_width(parameters, settings, values, header)
    parameters |= _scaling(parameters, settings, values, header)
    if "original_max_position_embeddings" in settings:  # of Phi 3, whose class has a default of its own there
        trained = parameters.get("original_max_position_embeddings", settings["max_position_embeddings"])
        settings["original_max_position_embeddings"] = trained
    if not is_split:
        settings["rope_parameters"] = parameters
        return
    # Layers with a window keep their own base and are never scaled.
    near = dict(by_layer_type["sliding_attention"])
    near["rope_theta"] = values.get("rope.freq_base_swa", near["rope_theta"])
    settings["rope_parameters"] = {"full_attention": parameters, "sliding_attention": near}


def _set_width(
    parameters: dict[str, Any], settings: Mapping[str, Any], values: Mapping[str, Value], header: GgufHeader
) -> None:
    """Of each head's dimensions the first ones are rotated."""
    width = values.get("rope.dimension_count")
    head_dim = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    if not isinstance(width, int) or "mrope_section" in parameters:
        return
    if "partial_rotary_factor" in parameters:
        parameters["partial_rotary_factor"] = width / head_dim
    elif width != head_dim:
        raise ModelFilesError(
            f"{header.path} rotates {width} of {head_dim} dimensions ({header.architecture}.rope.dimension_count), "
            f"which transformers' {settings['model_type']} cannot: serve the model's safetensors instead"
        )


def _scaling(
    parameters: Mapping[str, Any], settings: Mapping[str, Any], values: Mapping[str, Value], header: GgufHeader
) -> dict[str, Any]:
    factor = values.get(f"{_SCALING}factor", values.get("rope.scale_linear", 0.0))
    kind = values.get(f"{_SCALING}type", "linear" if factor not in (0.0, 1.0) else "none")
    original = values.get(f"{_SCALING}original_context_length")
    names = {tensor.name for tensor in header.tensors}
    attention_factor = values.get(f"{_SCALING}attn_factor", values.get(f"{_SCALING}yarn_attn_factor", 1.0))
    assert isinstance(factor, float | int)
    assert isinstance(attention_factor, float | int)
    if {_SHORT, _LONG} & names:
        return _long_scaling(settings, original, float(attention_factor), header)
    is_scaled = factor not in (0.0, 1.0)
    if attention_factor != 1.0 and (kind in ("none", "linear", "llama3") or not is_scaled):
        raise ModelFilesError(
            f"{header.path} scales attention by {attention_factor} ({_SCALING}attn_factor) with "
            f"positions of the kind {kind!r}, which no model of transformers does"
        )
    if _FREQS in names:
        if kind == "linear" and is_scaled:
            raise ModelFilesError(f"{header.path} scales rotary positions twice, by {_FREQS} and by {_SCALING}factor")
        return _freqs_scaling(_read_floats(header, _FREQS), parameters, settings)
    if kind == "none" or (kind in ("linear", "yarn") and not is_scaled):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        if values.get(f"{_SCALING}yarn_ext_factor", 1.0) not in (-1.0, 1.0):
            raise ModelFilesError(f"{header.path} has a {_SCALING}yarn_ext_factor other than 1, which is not read here")
        if original is None:
            raise ModelFilesError(f"{header.path} has yarn positions without {_SCALING}original_context_length")
        scaling = {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": original,
            # The factor of the paper (https://arxiv.org/abs/2309.00071, section 3.4) times that of the file.
            "attention_factor": float(attention_factor) * (0.1 * math.log(factor) + 1.0),
        }
        betas = {name: values.get(f"{_SCALING}yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return scaling | {name: beta for name, beta in betas.items() if beta is not None}
    raise ModelFilesError(
        f"{header.path} has positions of the kind {kind!r} ({_SCALING}type); none, linear, yarn and the tensors of "
        "Llama 3 and Phi 3 are known"
    )


def _long_scaling(
    settings: Mapping[str, Any], original: Value | None, attention_factor: float, header: GgufHeader
) -> dict[str, Any]:
    longest = settings["max_position_embeddings"]
    length = original or longest
    assert isinstance(length, int)
    return {
        "rope_type": "longrope",
        "short_factor": _read_floats(header, _SHORT).tolist(),
        "long_factor": _read_floats(header, _LONG).tolist(),
        "factor": longest / length,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": length,
    }


def _freqs_scaling(
    divisors_P: npt.NDArray[np.float32], parameters: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Name the scaling of Llama 3 where the numbers are its own, else give the numbers themselves."""
    factor = float(divisors_P.max())
    expected_P = llama3_divisors(float(parameters["rope_theta"]), factor, num_pairs=len(divisors_P))
    if factor > 1.0 and np.allclose(divisors_P, expected_P, rtol=1e-4):
        return {
            "rope_type": "llama3",
            "factor": round(factor, 4),
            "low_freq_factor": _LLAMA3_LOW,
            "high_freq_factor": _LLAMA3_HIGH,
            "original_max_position_embeddings": _LLAMA3_LENGTH,
        }
    # One list for texts of all lengths: the border between both lies where texts end.
    return {
        "rope_type": "longrope",
        "short_factor": divisors_P.tolist(),
        "long_factor": divisors_P.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": settings["max_position_embeddings"],
    }


def llama3_divisors(base: float, factor: float, *, num_pairs: int) -> npt.NDArray[np.float64]:
    """Give by how much Llama 3.1 divides each pair's frequency, [P] float64.

    Wavelengths longer than the trained length are divided by the factor, those shorter than a quarter of that length
    stay, and between the borders the frequency is interpolated (the model's published code, `apply_scaling`).
    """
    frequencies_P = base ** -(np.arange(num_pairs) / num_pairs)
    wavelengths_P = 2 * np.pi / frequencies_P
    smooth_P = (_LLAMA3_LENGTH / wavelengths_P - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    smooth_P = np.clip(smooth_P, 0.0, 1.0)
    divisors_P: npt.NDArray[np.float64] = 1.0 / ((1.0 - smooth_P) / factor + smooth_P)
    return divisors_P


def _read_floats(header: GgufHeader, name: str) -> npt.NDArray[np.float32]:
    tensor = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if tensor is None:
        raise ModelFilesError(f"{header.path} lacks {name}, whose counterpart it has")
    if tensor.kind != 0:
        raise ModelFilesError(f"{header.path} holds {name} in another form than 32-bit floats")
    with header.path.open("rb") as stream:
        stream.seek(header.data_start + tensor.offset)
        return np.frombuffer(stream.read(tensor.size), dtype="<f4")
