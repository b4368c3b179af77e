"""The parts of transformers that make a model's input of images and audio, from the files of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor

from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.loader.library_errors import as_model_error


def image_processor(folder: Path, model_type: str) -> Any:
    """Return the processor of images. Raises UnsupportedModelError."""

    def why(said: str) -> UnsupportedModelError:
        if "torchvision" in said.lower():
            return UnsupportedModelError(
                f"models of type {model_type} cannot be served: their image processor needs torchvision"
            )
        return UnsupportedModelError(f"the image processor of {folder} cannot be read: {said}")

    with as_model_error(why):
        return AutoImageProcessor.from_pretrained(folder)


def audio_extractor(folder: Path) -> Any:
    """Return the extractor of audio. Raises ModelFilesError."""
    with as_model_error(lambda said: ModelFilesError(f"the feature extractor of {folder} cannot be read: {said}")):
        return AutoFeatureExtractor.from_pretrained(folder)


def min_samples(config: Any) -> int:
    """Return the samples of the shortest audio of which convolutions leave one step; 1 where there are none."""
    num_samples = 1
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    for kernel, stride in zip(reversed(list(kernels or ())), reversed(list(strides or ())), strict=True):
        num_samples = (num_samples - 1) * stride + kernel
    return num_samples
