"""Makes of a model folder and a task of images or audio a runner of files with its facts."""

import io
import logging
import math
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSpeechSeq2Seq,
)

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.loader.load_options import OnProgress
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.media.image_file import prepare_images
from textmill_shard.tasks.batch_check import TASKS_OF_TEXTS
from textmill_shard.tasks.depth_head import DepthHead
from textmill_shard.tasks.document_head import DocumentHead
from textmill_shard.tasks.file_facts import find_tokenizer, read_labels, read_problem_type
from textmill_shard.tasks.media_heads import BoxHead, MediaLabelHead
from textmill_shard.tasks.media_processors import audio_extractor, image_processor, min_samples
from textmill_shard.tasks.media_rows import MediaReader, audio_read, image_read
from textmill_shard.tasks.media_runner import MAX_TOGETHER, MediaHead, MediaRunner
from textmill_shard.tasks.picture_words import (
    TRIAL_BOXES,
    build_captions,
    build_page_answers,
    build_picture_answers,
    caption_class,
    page_answer_class,
    picture_answer_class,
    trial_texts,
)
from textmill_shard.tasks.rows import (
    BoxParams,
    DocumentParams,
    HeadName,
    MediaRow,
    Params,
    RowFailure,
    SegmentParams,
    TranscriptParams,
    WritingParams,
)
from textmill_shard.tasks.segment_head import SegmentHead, segmentation_class
from textmill_shard.tasks.speech_heads import CtcHead
from textmill_shard.tasks.task_loader import TaskOptions, row_source
from textmill_shard.tasks.text_box_head import TextBoxHead
from textmill_shard.tasks.whisper_head import WhisperHead, read_generation_config
from textmill_shard.tasks.zero_shot_models import build_text_boxes, build_text_match, text_box_class, text_match_class

log = logging.getLogger(__name__)

_AUDIO_TASKS = ("audio-classification", "automatic-speech-recognition")
# Heads whose files run alone: speech of any length, masks and depths as large as the image, and pages of many windows.
_ALONE = (HeadName.TRANSCRIPTS, HeadName.SEGMENTS, HeadName.DEPTHS, HeadName.DOCUMENTS)
# Heads whose numbers have no labels of the model.
_UNLABELLED = (
    HeadName.TRANSCRIPTS,
    HeadName.PAIR_SCORES,
    HeadName.DEPTHS,
    HeadName.WRITINGS,
    HeadName.DOCUMENTS,
)
_CLASSES: Mapping[str, Any] = {
    "image-classification": AutoModelForImageClassification,
    "object-detection": AutoModelForObjectDetection,
    "depth-estimation": AutoModelForDepthEstimation,
    "audio-classification": AutoModelForAudioClassification,
}
_TRIAL_PIXELS = 640
_TRIAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The largest file that is decoded."""

    max_pixels: int
    max_seconds: float


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    """A runner, and the facts of its model."""

    runner: MediaRunner
    head: HeadName
    media: str  # "image" or "audio"
    model_type: str
    dtype: str
    labels: tuple[str, ...]
    problem_type: str
    weight_bytes: int
    max_batch_files: int
    batch_s: float  # seconds of a batch of as many files
    languages: tuple[str, ...] = ()  # that a call may name
    subtasks: tuple[str, ...] = ()  # of segmentation, the first without a wish
    max_row_tokens: int = 0  # of a window of a page


def load_media(options: TaskOptions, limits: MediaLimits, on_progress: OnProgress) -> LoadedMedia:
    """Return the runner. Raises ModelError with a sentence for the operator."""
    started = time.monotonic()
    on_progress("config", 0.0)
    prepare_images(max_pixels=limits.max_pixels)
    source = _read(options)
    on_progress("weights", 0.0)
    model = fill_model(build_model(source), source, on_progress=lambda share: on_progress("weights", share)).model
    on_progress("warmup", 0.0)
    build = {
        "image-classification": _image_labels,
        "object-detection": _image_boxes,
        "image-segmentation": _image_segments,
        "zero-shot-image-classification": _text_matches,
        "zero-shot-object-detection": _text_boxes,
        "depth-estimation": _image_depths,
        "image-to-text": _captions,
        "visual-question-answering": _picture_answers,
        "document-question-answering": _page_answers,
        "audio-classification": _audio_labels,
        "automatic-speech-recognition": _speech,
    }[options.task]
    head_name, head, reader = build(model, source, limits)
    runner = MediaRunner({head_name: head}, reader, device=source.device)
    media = "audio" if options.task in _AUDIO_TASKS else "image"
    max_batch_files = 1 if head_name in _ALONE or isinstance(head, TextBoxHead) else MAX_TOGETHER
    texts = trial_texts(head_name) if options.task in TASKS_OF_TEXTS else ()
    batch_s = _warm_up(runner, head_name, MediaRow(_trial_file(media, limits), texts=texts), media) * max_batch_files
    trim_heap()
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    dtype = str(source.dtype).removeprefix("torch.")
    facts = {"model_type": source.config.model_type, "task": options.task, "dtype": dtype}
    log.info(
        "model loaded",
        extra={**facts, "weight_bytes": weight_bytes, "load_s": round(time.monotonic() - started, 3)},
    )
    is_labelled = head_name not in _UNLABELLED and not isinstance(head, TextBoxHead)
    return LoadedMedia(
        runner=runner,
        head=head_name,
        media=media,
        model_type=str(source.config.model_type),
        dtype=dtype,
        labels=read_labels(source.config, options.model_dir) if is_labelled else (),
        problem_type=read_problem_type(source.config, options.model_dir) if is_labelled else "",
        weight_bytes=weight_bytes,
        max_batch_files=max_batch_files,
        batch_s=batch_s,
        languages=head.languages if isinstance(head, WhisperHead) else (),
        subtasks=head.subtasks if isinstance(head, SegmentHead) else (),
        max_row_tokens=head.max_window_tokens if isinstance(head, DocumentHead) else 0,
    )


def _read(options: TaskOptions) -> ModelSource:
    folder = options.model_dir
    config = read_config(folder, trust_remote_code=options.trust_remote_code)
    is_whisper = config.model_type == "whisper"
    if options.task == "automatic-speech-recognition" and config.is_encoder_decoder and not is_whisper:
        raise UnsupportedModelError(
            f"models of type {config.model_type} cannot be served as automatic-speech-recognition: speech is written "
            "down by Whisper and by CTC models"
        )
    auto_class = _auto_class(options.task, config)
    return row_source(options, folder, config, auto_class)


def _auto_class(task: str, config: Any) -> Any:
    """Return the class of transformers that builds the model. Raises UnsupportedModelError."""
    match task:
        case "automatic-speech-recognition":
            return AutoModelForSpeechSeq2Seq if config.model_type == "whisper" else AutoModelForCTC
        case "image-segmentation":
            return segmentation_class(config)
        case "zero-shot-image-classification":
            return text_match_class(config)
        case "zero-shot-object-detection":
            return text_box_class(config)
        case "image-to-text":
            return caption_class(config)
        case "visual-question-answering":
            return picture_answer_class(config)
        case "document-question-answering":
            return page_answer_class(config)
    return _CLASSES[task]


_Built = tuple[HeadName, MediaHead, MediaReader]


def _image_labels(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    reader = MediaReader(
        image_read(image_processor(source.folder, source.config.model_type), max_pixels=limits.max_pixels)
    )
    return HeadName.LABELS, MediaLabelHead(model, device=source.device, dtype=source.dtype), reader


def _image_boxes(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    processor = image_processor(source.folder, source.config.model_type)
    if not hasattr(processor, "post_process_object_detection"):
        raise UnsupportedModelError(
            f"{source.folder} has the processor {type(processor).__name__}, which finds no objects"
        )
    head = BoxHead(model, processor, device=source.device, dtype=source.dtype)
    return HeadName.BOXES, head, MediaReader(image_read(processor, max_pixels=limits.max_pixels))


def _image_segments(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    processor = image_processor(source.folder, source.config.model_type)
    head = SegmentHead(model, processor, device=source.device, dtype=source.dtype)
    return HeadName.SEGMENTS, head, MediaReader(image_read(processor, max_pixels=limits.max_pixels))


def _text_matches(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    return build_text_match(model, source, max_pixels=limits.max_pixels)


def _text_boxes(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    return build_text_boxes(model, source, max_pixels=limits.max_pixels)


def _image_depths(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    processor = image_processor(source.folder, source.config.model_type)
    head = DepthHead(model, processor, device=source.device, dtype=source.dtype)
    return HeadName.DEPTHS, head, MediaReader(image_read(processor, max_pixels=limits.max_pixels))


def _captions(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    return build_captions(model, source, max_pixels=limits.max_pixels)


def _picture_answers(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    return build_picture_answers(model, source, max_pixels=limits.max_pixels)


def _page_answers(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    return build_page_answers(model, source, max_pixels=limits.max_pixels)


def _audio_labels(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    read = audio_read(
        audio_extractor(source.folder),
        max_seconds=limits.max_seconds,
        min_samples=min_samples(source.config),
        makes_inputs=True,
    )
    return HeadName.LABELS, MediaLabelHead(model, device=source.device, dtype=source.dtype), MediaReader(read)


def _speech(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    extractor, tokenizer = audio_extractor(source.folder), find_tokenizer(source.folder)
    head: MediaHead
    if source.config.model_type == "whisper":
        read_generation_config(model, source.folder)
        head = WhisperHead(model, extractor, tokenizer, device=source.device, dtype=source.dtype)
    else:
        head = CtcHead(model, extractor, tokenizer, device=source.device, dtype=source.dtype)
    read = audio_read(
        extractor,
        max_seconds=limits.max_seconds,
        min_samples=min_samples(source.config),
        makes_inputs=False,
    )
    return HeadName.TRANSCRIPTS, head, MediaReader(read)


def _trial_file(media: str, limits: MediaLimits) -> bytes:
    """Return a file within the limits that every model can read."""
    if media == "image":
        return _plain_picture(min(_TRIAL_PIXELS, math.isqrt(limits.max_pixels)))
    return _quiet_sound(min(_TRIAL_SECONDS, limits.max_seconds))


def _warm_up(runner: MediaRunner, head: HeadName, row: MediaRow, media: str) -> float:
    """Compute one file twice, and return the seconds of the second time. Raises UnsupportedModelError."""
    params: Params = None
    if head is HeadName.BOXES:
        params = BoxParams(0.5)
    elif head is HeadName.SEGMENTS:
        params = SegmentParams(0.9, 0.5, 0.5)
    elif head is HeadName.WRITINGS:
        params = WritingParams(max_new_tokens=8)
    elif head is HeadName.DOCUMENTS:
        params = DocumentParams(TRIAL_BOXES, max_window_tokens=24, stride=2, max_span_tokens=4, max_spans=1)
    elif head is HeadName.TRANSCRIPTS:
        params = TranscriptParams(max_new_tokens=8)
    seconds = 0.0
    for _ in range(2):
        began_s = time.monotonic()
        (answer,) = runner.run(head, runner.read([replace(row, params=params)]))
        seconds = time.monotonic() - began_s
        if isinstance(answer, RowFailure):
            raise UnsupportedModelError(f"the model cannot be served: it fails at a plain {media}: {answer.message}")
    return seconds


def _plain_picture(side: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), (99, 120, 140)).save(written, "PNG")
    return written.getvalue()


def _quiet_sound(seconds: float) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\x05\x00\xfb\xff" * math.floor(8_000 * seconds))
    return written.getvalue()
