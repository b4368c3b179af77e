"""Builds what models of images compute of the texts that a call brings: labels that fit an image, and its objects."""

from typing import Any

from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    BlipForImageTextRetrieval,
)

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.model_filling import ModelSource
from textmill_shard.tasks.file_facts import find_max_row_tokens, find_tokenizer
from textmill_shard.tasks.label_texts import LabelTexts
from textmill_shard.tasks.media_processors import image_processor
from textmill_shard.tasks.media_rows import MediaReader, image_read
from textmill_shard.tasks.media_runner import MediaHead
from textmill_shard.tasks.rows import HeadName
from textmill_shard.tasks.text_box_head import TextBoxHead
from textmill_shard.tasks.text_match_heads import PairHead, TextMatchHead

SIGLIP_TOKENS = 64  # to which SigLIP was trained with its texts padded
# Types whose places of an image are scored for each text by itself.
_READS_TOGETHER = frozenset({"owlvit", "owlv2"})


class BlipPairs:
    """Makes `BlipForImageTextRetrieval` as an AutoModel would, because transformers has no AutoModel of the class."""

    @staticmethod
    def from_config(config: Any, *, trust_remote_code: bool, **options: Any) -> Any:
        return BlipForImageTextRetrieval._from_config(config, **options)

    @staticmethod
    def from_pretrained(folder: Any, *, trust_remote_code: bool, **options: Any) -> Any:
        return BlipForImageTextRetrieval.from_pretrained(folder, **options)


def text_match_class(config: Any) -> Any:
    """Return the class that builds a model for zero-shot-image-classification."""
    return BlipPairs if _is_pair_model(config) else AutoModelForZeroShotImageClassification


def text_box_class(config: Any) -> Any:
    """Return the class that builds a model for zero-shot-object-detection. Raises UnsupportedModelError."""
    if config.model_type == "omdet-turbo":
        raise UnsupportedModelError("models of type omdet-turbo cannot be served: their processor needs torchvision")
    return AutoModelForZeroShotObjectDetection


def build_text_match(model: Any, source: ModelSource, *, max_pixels: int) -> tuple[HeadName, MediaHead, MediaReader]:
    """Return head and reader of zero-shot-image-classification. Raises ModelError."""
    processor = image_processor(source.folder, source.config.model_type)
    is_siglip = "siglip" in source.config.model_type
    texts = _label_texts(model, source, fixed_tokens=SIGLIP_TOKENS if is_siglip else 0)
    head: MediaHead
    if _is_pair_model(source.config):
        head = PairHead(model, texts, device=source.device, dtype=source.dtype)
    else:
        head = TextMatchHead(model, texts, scores_each=is_siglip, device=source.device, dtype=source.dtype)
    return HeadName.PAIR_SCORES, head, MediaReader(image_read(processor, max_pixels=max_pixels, check_texts=texts))


def build_text_boxes(model: Any, source: ModelSource, *, max_pixels: int) -> tuple[HeadName, MediaHead, MediaReader]:
    """Return head and reader of zero-shot-object-detection. Raises ModelError."""
    processor = image_processor(source.folder, source.config.model_type)
    if not hasattr(processor, "post_process_object_detection"):
        raise UnsupportedModelError(
            f"{source.folder} has the processor {type(processor).__name__}, which finds no objects"
        )
    texts = _label_texts(model, source)
    head = TextBoxHead(
        model,
        processor,
        texts,
        reads_together=source.config.model_type in _READS_TOGETHER,
        device=source.device,
        dtype=source.dtype,
    )
    return HeadName.BOXES, head, MediaReader(image_read(processor, max_pixels=max_pixels, check_texts=texts))


def _is_pair_model(config: Any) -> bool:
    return bool(config.architectures and config.architectures[0] == BlipForImageTextRetrieval.__name__)


def _label_texts(model: Any, source: ModelSource, *, fixed_tokens: int = 0) -> LabelTexts:
    tokenizer = find_tokenizer(source.folder)
    # BLIP-2 reads texts by its Q-Former, and the language model of its config is not there.
    config = getattr(source.config, "qformer_config", None) or source.config
    max_tokens = find_max_row_tokens(source.folder, config, model, tokenizer)
    if fixed_tokens:
        max_tokens = min(max_tokens or fixed_tokens, fixed_tokens)
    # The forward of such a BLIP-2 takes the tokens away that its processor puts there for the image.
    has_places = getattr(source.config, "image_token_index", None) is not None
    num_places = source.config.num_query_tokens if has_places and source.config.model_type == "blip-2" else 0
    return LabelTexts(tokenizer, max_tokens=max_tokens, fixed_tokens=fixed_tokens, num_places=num_places)
