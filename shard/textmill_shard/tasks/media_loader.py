"""Makes of a model folder and a task of images or audio a runner of files with its facts."""

import io
import logging
import math
import time
import wave
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSpeechSeq2Seq,
)

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.load_options import OnProgress
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_files import find_weight_files
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.loader.stored_form import find_stored_form
from textmill_shard.media.image_file import prepare_images
from textmill_shard.tasks.file_facts import find_tokenizer, read_labels, read_problem_type
from textmill_shard.tasks.media_heads import BoxHead, MediaLabelHead
from textmill_shard.tasks.media_rows import MediaReader, audio_read, image_read
from textmill_shard.tasks.media_runner import MAX_TOGETHER, MediaHead, MediaRunner
from textmill_shard.tasks.rows import (
    BoxParams,
    HeadName,
    MediaRow,
    Params,
    RowFailure,
    SegmentParams,
    TranscriptParams,
)
from textmill_shard.tasks.segment_head import SegmentHead, segmentation_class
from textmill_shard.tasks.speech_heads import CtcHead
from textmill_shard.tasks.task_loader import TaskOptions, pick_row_dtype
from textmill_shard.tasks.whisper_head import WhisperHead, read_generation_config

log = logging.getLogger(__name__)

_IMAGE_TASKS = ("image-classification", "object-detection", "image-segmentation")
# Heads whose files run alone: speech of any length, and masks as large as the image.
_ALONE = (HeadName.TRANSCRIPTS, HeadName.SEGMENTS)
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
        "audio-classification": _audio_labels,
        "automatic-speech-recognition": _speech,
    }[options.task]
    head_name, head, reader = build(model, source, limits)
    runner = MediaRunner({head_name: head}, reader, device=source.device)
    media = "image" if options.task in _IMAGE_TASKS else "audio"
    max_batch_files = 1 if head_name in _ALONE else MAX_TOGETHER
    batch_s = _warm_up(runner, head_name, _trial_file(media, limits), media) * max_batch_files
    trim_heap()
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    dtype = str(source.dtype).removeprefix("torch.")
    facts = {"model_type": source.config.model_type, "task": options.task, "dtype": dtype}
    log.info(
        "model loaded",
        extra={**facts, "weight_bytes": weight_bytes, "load_s": round(time.monotonic() - started, 3)},
    )
    is_labelled = head_name is not HeadName.TRANSCRIPTS
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
    device = torch.device(options.device)
    auto_class: Any = {
        "image-classification": AutoModelForImageClassification,
        "object-detection": AutoModelForObjectDetection,
        "image-segmentation": segmentation_class(config),
        "audio-classification": AutoModelForAudioClassification,
        "automatic-speech-recognition": AutoModelForSpeechSeq2Seq if is_whisper else AutoModelForCTC,
    }[options.task]
    return ModelSource(
        folder=folder,
        config=config,
        files=find_weight_files(
            folder, allow_pickle=options.allow_pickle, named=getattr(config, "transformers_weights", None)
        ),
        form=find_stored_form(config, folder, num_ranks=1),
        dtype=getattr(torch, pick_row_dtype(options.dtype, config, device)),
        device=device,
        parallel=TensorParallel(),
        trust_remote_code=options.trust_remote_code,
        auto_class=auto_class,
    )


_Built = tuple[HeadName, MediaHead, MediaReader]


def _image_labels(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    reader = MediaReader(image_read(_image_processor(source), max_pixels=limits.max_pixels))
    return HeadName.LABELS, MediaLabelHead(model, device=source.device, dtype=source.dtype), reader


def _image_boxes(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    processor = _image_processor(source)
    if not hasattr(processor, "post_process_object_detection"):
        raise UnsupportedModelError(
            f"{source.folder} has the processor {type(processor).__name__}, which finds no objects"
        )
    head = BoxHead(model, processor, device=source.device, dtype=source.dtype)
    return HeadName.BOXES, head, MediaReader(image_read(processor, max_pixels=limits.max_pixels))


def _image_segments(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    processor = _image_processor(source)
    head = SegmentHead(model, processor, device=source.device, dtype=source.dtype)
    return HeadName.SEGMENTS, head, MediaReader(image_read(processor, max_pixels=limits.max_pixels))


def _audio_labels(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    read = audio_read(
        _extractor(source),
        max_seconds=limits.max_seconds,
        min_samples=_min_samples(source.config),
        makes_inputs=True,
    )
    return HeadName.LABELS, MediaLabelHead(model, device=source.device, dtype=source.dtype), MediaReader(read)


def _speech(model: Any, source: ModelSource, limits: MediaLimits) -> _Built:
    extractor, tokenizer = _extractor(source), find_tokenizer(source.folder)
    head: MediaHead
    if source.config.model_type == "whisper":
        read_generation_config(model, source.folder)
        head = WhisperHead(model, extractor, tokenizer, device=source.device, dtype=source.dtype)
    else:
        head = CtcHead(model, extractor, tokenizer, device=source.device, dtype=source.dtype)
    read = audio_read(
        extractor,
        max_seconds=limits.max_seconds,
        min_samples=_min_samples(source.config),
        makes_inputs=False,
    )
    return HeadName.TRANSCRIPTS, head, MediaReader(read)


def _image_processor(source: ModelSource) -> Any:
    def why(said: str) -> UnsupportedModelError:
        if "torchvision" in said.lower():
            return UnsupportedModelError(
                f"models of type {source.config.model_type} cannot be served: their image processor needs torchvision"
            )
        return UnsupportedModelError(f"the image processor of {source.folder} cannot be read: {said}")

    with as_model_error(why):
        return AutoImageProcessor.from_pretrained(source.folder)


def _extractor(source: ModelSource) -> Any:
    with as_model_error(
        lambda said: ModelFilesError(f"the feature extractor of {source.folder} cannot be read: {said}")
    ):
        return AutoFeatureExtractor.from_pretrained(source.folder)


def _min_samples(config: Any) -> int:
    """Return the samples of the shortest audio of which convolutions leave one step; 1 where there are none."""
    num_samples = 1
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    for kernel, stride in zip(reversed(list(kernels or ())), reversed(list(strides or ())), strict=True):
        num_samples = (num_samples - 1) * stride + kernel
    return num_samples


def _trial_file(media: str, limits: MediaLimits) -> bytes:
    """Return a file within the limits that every model can read."""
    if media == "image":
        return _plain_picture(min(_TRIAL_PIXELS, math.isqrt(limits.max_pixels)))
    return _quiet_sound(min(_TRIAL_SECONDS, limits.max_seconds))


def _warm_up(runner: MediaRunner, head: HeadName, data: bytes, media: str) -> float:
    """Compute one file twice, and return the seconds of the second time. Raises UnsupportedModelError."""
    params: Params = None
    if head is HeadName.BOXES:
        params = BoxParams(0.5)
    elif head is HeadName.SEGMENTS:
        params = SegmentParams(0.9, 0.5, 0.5)
    elif head is HeadName.TRANSCRIPTS:
        params = TranscriptParams(max_new_tokens=8)
    seconds = 0.0
    for _ in range(2):
        began_s = time.monotonic()
        (answer,) = runner.run(head, runner.read([MediaRow(data, params)]))
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
