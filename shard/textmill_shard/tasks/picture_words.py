"""Builds what models of pictures compute with words: captions, and answers to questions about pictures and pages."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import (
    AutoModelForDocumentQuestionAnswering,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForVisualQuestionAnswering,
)

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.model_filling import ModelSource
from textmill_shard.tasks.document_head import DocumentHead
from textmill_shard.tasks.donut_texts import DonutTexts
from textmill_shard.tasks.file_facts import find_max_row_tokens, find_tokenizer
from textmill_shard.tasks.media_heads import MediaLabelHead
from textmill_shard.tasks.media_processors import image_processor
from textmill_shard.tasks.media_rows import MediaReader, Read, image_read
from textmill_shard.tasks.media_runner import MediaHead
from textmill_shard.tasks.question_reads import page_read, question_read
from textmill_shard.tasks.rows import HeadName
from textmill_shard.tasks.writing_head import WritingHead, read_settings

# A page for the first run of a model.
_TRIAL_PAGE = ("What is it?", "a", "plain", "page")
TRIAL_BOXES = np.array([[100 * left, 10, 100 * left + 50, 30] for left in (1, 2, 3)])
_Built = tuple[HeadName, MediaHead, MediaReader]
_PAGES_OF_WORDS = ("layoutlm", "layoutlmv3", "lilt")
# The types that each task is served with, and why others that the task is known for are not.
_SERVED = {
    "image-to-text": ("vision-encoder-decoder", "blip", "git", "pix2struct"),
    "visual-question-answering": ("vilt", "blip", "git"),
    "document-question-answering": (*_PAGES_OF_WORDS, "vision-encoder-decoder"),
}
_NOT_SERVED = {
    "blip-2": "a large language model writes their texts, and models with images of this type are not served",
    "pix2struct": "they read a question as a picture of its letters, in a font that is not among their files",
    "layoutlmv2": "they look at the page by detectron2, which is no part of this server",
    "udop": "their encoder reads a page, its words and a task's prompt in a form of their own",
    "lxmert": "they read features of regions of a picture, which another model finds",
    "visual_bert": "they read features of regions of a picture, which another model finds",
}


def caption_class(config: Any) -> Any:
    """Return the class that builds a model for image-to-text. Raises UnsupportedModelError."""
    _check_type("image-to-text", config)
    return AutoModelForImageTextToText


def picture_answer_class(config: Any) -> Any:
    """Return the class that builds a model for visual-question-answering. Raises UnsupportedModelError."""
    _check_type("visual-question-answering", config)
    return AutoModelForImageTextToText if config.model_type == "git" else AutoModelForVisualQuestionAnswering


def page_answer_class(config: Any) -> Any:
    """Return the class that builds a model for document-question-answering. Raises UnsupportedModelError."""
    _check_type("document-question-answering", config)
    if config.model_type == "lilt":
        return AutoModelForQuestionAnswering
    if config.model_type in _PAGES_OF_WORDS:
        return AutoModelForDocumentQuestionAnswering
    if config.encoder.model_type != "donut-swin":
        raise UnsupportedModelError(
            f"models of type {config.model_type} with an encoder of type {config.encoder.model_type} cannot be served "
            "as document-question-answering, because Donut alone reads questions"
        )
    return AutoModelForImageTextToText


def _check_type(task: str, config: Any) -> None:
    kind = config.model_type
    if kind not in _SERVED[task]:
        reason = _NOT_SERVED.get(kind, f"the types are {', '.join(_SERVED[task])}")
        raise UnsupportedModelError(f"models of type {kind} cannot be served as {task}, because {reason}")


def trial_texts(head: HeadName) -> tuple[str, ...]:
    """Return the texts of the first run of a model that reads texts: a question, of a page also its words."""
    return _TRIAL_PAGE if head is HeadName.DOCUMENTS else _TRIAL_PAGE[:1]


def build_captions(model: Any, source: ModelSource, *, max_pixels: int) -> _Built:
    """Return head and reader of image-to-text. Raises ModelError."""
    processor = image_processor(source.folder, source.config.model_type)
    if getattr(processor, "is_vqa", False):
        raise UnsupportedModelError(
            f"{source.folder} is a model that answers questions; such models of type {source.config.model_type} cannot "
            f"be served, because {_NOT_SERVED['pix2struct']}"
        )
    tokenizer = find_tokenizer(source.folder)

    def read_text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return _writing(model, source, read_text, image_read(processor, max_pixels=max_pixels))


def build_picture_answers(model: Any, source: ModelSource, *, max_pixels: int) -> _Built:
    """Return head and reader of visual-question-answering. Raises ModelError."""
    kind = source.config.model_type
    picture = image_read(image_processor(source.folder, kind), max_pixels=max_pixels)
    tokenizer = find_tokenizer(source.folder)
    max_tokens = find_max_row_tokens(source.folder, source.config, model, tokenizer)

    def encode(question: str) -> Sequence[int]:
        # GIT writes on behind the question, so that no token ends the question.
        ids: list[int] = tokenizer(question, add_special_tokens=kind != "git")["input_ids"]
        return ids if kind != "git" else [tokenizer.cls_token_id, *ids]

    def read_text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    names = {"vilt": ("input_ids", "attention_mask", "token_type_ids"), "git": ("input_ids",)}
    read = question_read(picture, encode, names.get(kind, ("input_ids", "attention_mask")), max_tokens=max_tokens)
    if kind == "vilt":
        return HeadName.LABELS, MediaLabelHead(model, device=source.device, dtype=source.dtype), MediaReader(read)
    return _writing(model, source, read_text, read)


def build_page_answers(model: Any, source: ModelSource, *, max_pixels: int) -> _Built:
    """Return head and reader of document-question-answering. Raises ModelError."""
    kind = source.config.model_type
    tokenizer = find_tokenizer(source.folder)
    if kind not in _PAGES_OF_WORDS:
        texts = DonutTexts(tokenizer)
        if not texts.knows_questions:
            raise UnsupportedModelError(
                f"{source.folder} cannot be served as document-question-answering, because its tokenizer has no marks "
                "of questions about pages (<s_docvqa>, </s_answer>); serve the model as image-to-text"
            )
        picture = image_read(image_processor(source.folder, kind), max_pixels=max_pixels)
        # The prompt is no longer than leaves the model half of its places to write.
        most = find_max_row_tokens(source.folder, source.config.decoder, model, tokenizer) // 2
        return _writing(
            model, source, texts.read, question_read(picture, texts.encode, ("decoder_input_ids",), max_tokens=most)
        )
    if not tokenizer.is_fast:
        raise UnsupportedModelError(f"{source.folder} has a tokenizer that does not tell which word a token is of")
    read = page_read(max_pixels=max_pixels)
    if kind == "layoutlmv3":  # which sees the page too
        processor = image_processor(source.folder, kind)
        processor.apply_ocr = False  # the words come with the call
        read = image_read(processor, max_pixels=max_pixels)
    head = DocumentHead(
        model,
        tokenizer,
        max_window_tokens=find_max_row_tokens(source.folder, source.config, model, tokenizer),
        device=source.device,
        dtype=source.dtype,
    )
    return HeadName.DOCUMENTS, head, MediaReader(read)


def _writing(model: Any, source: ModelSource, read_text: Callable[[Sequence[int]], str], read: Read) -> _Built:
    read_settings(model, source.folder)
    head = WritingHead(model, read_text, device=source.device, dtype=source.dtype)
    return HeadName.WRITINGS, head, MediaReader(read)
