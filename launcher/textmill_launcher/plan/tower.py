"""Tells the tensors of a tower, which encodes images, from those of the text model, by the names of checkpoints."""

from collections.abc import Sequence

from textmill_launcher.plan.tensor_headers import TensorHeader

DEFAULT_MEDIA_CACHE_BYTES = {"cpu": 256 * 1024**2, "cuda": 1024**3}  # of the shard
_TEXT_PARTS = frozenset({"language_model", "text_model"})
# Of checkpoints whose text model stands beside the tower without a part of its own.
_TEXT_STARTS = ("lm_head.", "model.layers.", "model.embed_tokens.", "model.norm.")


def split_tower(tensors: Sequence[TensorHeader]) -> tuple[list[TensorHeader], list[TensorHeader]]:
    """Return the tensors of the text model, and those of the tower, of a model with images."""
    text = [tensor for tensor in tensors if _is_text(tensor.name)]
    return text, [tensor for tensor in tensors if not _is_text(tensor.name)]


def _is_text(name: str) -> bool:
    return name.startswith(_TEXT_STARTS) or not _TEXT_PARTS.isdisjoint(name.split("."))
