"""A tiny random Llava with the files of a checkpoint, for servers with a real shard, and transformers' answers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fakes.image_families import own_processor, row_id_of, write_image_family
from tests.zoo.entry import SMALL
from tests.zoo.images import CLIP


@dataclass(frozen=True)
class Answer:
    """A greedy answer, with the log-probability of each token."""

    num_prompt_tokens: int
    token_ids: list[int]
    logprobs: list[float]


def write_tiny_llava(folder: Path, *, seed: int = 0, **text_config: Any) -> Path:
    """Write a model that takes images of 16 x 16 pixels as 16 tokens, and return the folder."""
    write_image_family(folder, "llava")
    config = AutoConfig.for_model(
        "llava",
        text_config={**SMALL, "model_type": "llama", **text_config},
        vision_config=dict(CLIP),
        image_token_id=row_id_of(folder),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def transformers_answer(
    folder: Path, content: Sequence[bytes | str], *, num_tokens: int, has_turns: bool = True
) -> Answer:
    """Return the answer of transformers to a user's message of pictures and texts.

    Without `has_turns` the pictures and texts alone are the prompt, of which the template writes nothing but the
    placeholder of a picture.
    """
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": Image.open(io.BytesIO(part))}
        for part in content
    ]
    processor = own_processor(folder, "llava")
    if has_turns:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        placeholder = _written_of_image(processor)
        text = "".join(part if isinstance(part, str) else placeholder for part in content)
        pictures = [part["image"] for part in parts if part["type"] == "image"]
        inputs = processor(text=[text], images=pictures, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found = model.generate(
        **inputs, max_new_tokens=num_tokens, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    num_prompt = int(inputs["input_ids"].shape[1])
    ids: list[int] = found.sequences[0, num_prompt:].tolist()
    scores = [torch.log_softmax(row[0].double(), -1) for row in found.scores]
    return Answer(num_prompt, ids, [float(row[token]) for row, token in zip(scores, ids, strict=True)])


def _written_of_image(processor: Any) -> str:
    """Return what the chat template writes for a picture before a text."""

    def written(*parts: dict[str, str]) -> str:
        return str(processor.apply_chat_template([{"role": "user", "content": list(parts)}], tokenize=False))

    with_image, without = (
        written({"type": "image"}, {"type": "text", "text": "x"}),
        written({"type": "text", "text": "x"}),
    )
    before = next(place for place, letter in enumerate(with_image) if not without.startswith(letter, place))
    return with_image[before : before + len(with_image) - len(without)]
