"""A checkpoint's image processor, and what the processor makes of one image: a text for the prompt, and tensors.

The module needs transformers and Pillow and no torch. The processor of a family that also takes videos is made without
a processor of videos, which would need torchvision.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from textmill_router.media.image_source import Detail
from textmill_router.media.media_item import Grid, TensorPart
from textmill_router.media.worker.families import FAMILIES, ImageSettings
from textmill_router.media.worker.picture import PictureRefused, open_picture
from textmill_router.media.worker.pixtral import PixtralReader
from textmill_router.media.worker.tensor_bytes import tensor_part
from textmill_router.media.worker_messages import ImageAnswer, ProcessorFacts, WorkerSetup

_MAX_SHRINKS = 8
_CONFIG_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_CANNOT_READ = "the image processor of this checkpoint cannot read it"


class CheckpointUnusable(Exception):
    """No image processor can be made from the checkpoint's files. The text says why."""


class ImageReader:
    """The processor of one checkpoint."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Read the checkpoint's files, which takes a second. Raises CheckpointUnusable."""
        folder = Path(setup.model_dir)
        config = _read_json(folder / "config.json")
        kind = str(config.get("model_type", ""))
        name = _class_name(folder, kind)
        if name not in FAMILIES:
            raise CheckpointUnusable(f"images of the processor {name or 'of an unknown class'} are not supported")
        row_id = config.get("image_token_id", config.get("image_token_index"))
        if not isinstance(row_id, int):
            raise CheckpointUnusable("config.json names neither image_token_id nor image_token_index")
        self._setup = setup
        self._family = FAMILIES[name]
        self._processor = _make_processor(name, folder)
        tokenizer = self._processor.tokenizer
        self._settings = dict(
            self._processor._merge_kwargs(tokenizer_init_kwargs=tokenizer.init_kwargs)["images_kwargs"]
        )
        own = json.dumps(self._processor.image_processor.to_dict(), sort_keys=True, default=str)
        of_processor = json.dumps(_read_json(folder / "processor_config.json"), sort_keys=True)
        limits = json.dumps([setup.dtype, setup.max_pixels, setup.max_tokens])
        all_settings = [name, transformers.__version__, own, of_processor, str(self._settings), limits]
        self.facts = ProcessorFacts(
            kind=kind,
            placeholder=str(self._processor.image_token),
            row_text=str(tokenizer.convert_ids_to_tokens(row_id)),
            row_id=row_id,
            settings=hashlib.blake2b("\0".join(all_settings).encode(), digest_size=16).hexdigest(),
            puts_bos_behind=str(tokenizer.bos_token) if name == "PaliGemmaProcessor" else "",
        )

    def read(self, data: bytes, detail: Detail) -> tuple[ImageAnswer, list[TensorPart]]:
        """Decode an image and process it. Raises PictureRefused."""
        picture = open_picture(data, self._setup.max_pixels)
        choose = self._family.low if detail is Detail.LOW else self._family.within
        settings = {**self._settings, **choose(self._processor, self._setup.max_tokens)}
        processed, text = self._process(picture, settings)
        tensors = [
            tensor_part(name, np.asarray(processed[name]), self._setup.dtype)
            for name in self._family.tensor_names
            if name in processed and not _says_nothing(name, processed[name])
        ]
        answer = ImageAnswer(text, _grid(processed), sum(len(tensor.data) for tensor in tensors))
        return answer, tensors

    def _process(self, picture: Image.Image, settings: ImageSettings) -> tuple[Any, str]:
        """Process a picture, which is made smaller where only that makes fewer tokens of it. Raises PictureRefused."""
        most = self._setup.max_tokens
        for _ in range(_MAX_SHRINKS):
            try:
                processed, [text] = self._processor._process_images([picture], **settings, return_tensors="np")
            except MemoryError:
                raise PictureRefused("it needs too much memory", is_too_large=True) from None
            except Exception as error:  # processors raise what they like for sizes that they do not take
                raise PictureRefused(f"{_CANNOT_READ}: {str(error)[:200]}") from error
            num_tokens = text.count(self.facts.row_text)
            if num_tokens <= most:
                return processed, text
            if not self._family.follows_picture:
                break
            ratio = 0.9 * math.sqrt(most / num_tokens)
            picture = picture.resize((max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))))
        raise PictureRefused(
            f"it becomes {num_tokens} tokens, the limit is {most} (--max-image-tokens)", is_too_large=True
        )


def _make_processor(name: str, folder: Path) -> Any:
    try:
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = _read_json(folder / "processor_config.json")
        if name == "PixtralProcessor":
            return PixtralReader(image_processor, tokenizer, **config)
        _let_parts_be_absent()
        of_name = getattr(transformers, name)
        parts = {"image_processor": image_processor, "tokenizer": tokenizer}
        given = [parts.get(part) for part in of_name.get_attributes()]
        return of_name.from_args_and_dict(given, {key: value for key, value in config.items() if key not in parts})
    except Exception as error:  # a file of a checkpoint can be wrong in every way
        raise CheckpointUnusable(f"{type(error).__name__}: {error}") from error


def _let_parts_be_absent() -> None:
    """Let processors be made without their processor of videos, which images do not need."""
    check = ProcessorMixin.check_argument_for_proper_class

    def check_given(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else check(self, name, argument)

    ProcessorMixin.check_argument_for_proper_class = check_given


def _class_name(folder: Path, model_type: str) -> str:
    for file in _CONFIG_FILES:
        name = _read_json(folder / file).get("processor_class")
        if name:
            return str(name)
    return str(PROCESSOR_MAPPING_NAMES.get(model_type, ""))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{path.name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _says_nothing(name: str, values: Any) -> bool:
    """Whether a mask hides no pixel, which is what a tower assumes without a mask."""
    return name.endswith("_mask") and bool(np.asarray(values).all())


def _grid(processed: Any) -> Grid | None:
    if "image_grid_thw" not in processed:
        return None
    frames, height, width = (int(count) for count in processed["image_grid_thw"][0])
    return frames, height, width
