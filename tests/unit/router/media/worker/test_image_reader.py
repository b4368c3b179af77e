"""Every family: the prompt, the places of rows and the tensors are those of transformers' own processor."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from textmill_router.chat.conversation import Conversation
from textmill_router.chat.template_files import load_chat_templates
from textmill_router.media.image_source import Detail
from textmill_router.media.replacement import Rows, expand, fill, replacement_of
from textmill_router.media.worker.image_reader import CheckpointUnusable, ImageReader
from textmill_router.media.worker.picture import PictureRefused
from textmill_router.media.worker_messages import WorkerSetup
from textmill_router.request import token_array
from textmill_router.text.tokenization import Tokenizer
from transformers.processing_utils import ProcessorMixin

from tests.fakes.image_families import FAMILIES, own_processor, row_id_of, write_image_family
from tests.fakes.pictures import picture

SIZES = ((70, 45), (31, 90), (20, 20))
TEXTS = (("What is this?", "A cat.", "\n and these?\n"), ("\n\n", " ", "a <b>"))


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    """Undo the reader's change of transformers, which the worker makes in a process of its own."""
    check = ProcessorMixin.check_argument_for_proper_class
    yield
    ProcessorMixin.check_argument_for_proper_class = check


def reader_of(folder: Path, *, dtype: str = "float32", max_tokens: int = 4096) -> ImageReader:
    return ImageReader(WorkerSetup(str(folder), dtype, 10**7, max_tokens, 10, 2 << 30))


def conversation(images: list[Any], texts: tuple[str, str, str], **extra: Any) -> list[dict[str, Any]]:
    """Return two turns of a user: one image and a text; then a text around two images."""
    one, two, three = [
        {"type": "image", **({"image": image} if image is not None else {}), **extra} for image in images
    ]
    words = [{"type": "text", "text": text} for text in texts]
    return [
        {"role": "user", "content": [one, words[0]]},
        {"role": "assistant", "content": [words[1]]},
        {"role": "user", "content": [two, words[2], three]},
    ]


def own_ids(processor: Any, messages: list[dict[str, Any]], name: str) -> list[int]:
    """Return the prompt of transformers. OneVision's images are given one by one: together they have no tiles."""
    if name == "llava_onevision":
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        found = processor(text=[text], images=images)
    else:
        found = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    ids: list[int] = np.asarray(found["input_ids"][0]).tolist()
    return ids


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("texts", TEXTS, ids=["words", "blanks"])
def test_prompt_is_that_of_transformers(name: str, texts: tuple[str, str, str], tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, name)
    files = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    expected_ids = own_ids(own_processor(folder, name), conversation(pictures, texts), name)

    reader = reader_of(folder)
    answers = [reader.read(file, Detail.HIGH) for file in files]
    replacements = [replacement_of(answer.text, reader.facts.row_text) for answer, _ in answers]
    tokenizer = Tokenizer.load(folder)
    template = load_chat_templates(folder, None).pick(has_tools=False)
    rendered = template.render(Conversation(conversation([None] * 3, texts)))
    filled = fill([rendered], reader.facts.placeholder, [one.text for one in replacements])
    assert filled is not None
    [prompt] = filled
    if reader.facts.puts_bos_behind:
        end = prompt.rindex(reader.facts.row_text) + len(reader.facts.row_text)
        prompt = prompt[:end] + reader.facts.puts_bos_behind + prompt[end:] + "\n"
    encoded = tokenizer.encode_plain(prompt)
    before, after = tokenizer.edge_ids()
    if not prompt.startswith("<|begin|>") and not reader.facts.puts_bos_behind:
        encoded = before + encoded + after
    rows = [Rows(bytes([index]) * 16, one.run_lengths) for index, one in enumerate(replacements)]
    placed = expand(token_array(encoded), reader.facts.row_id, rows)

    assert placed is not None
    assert placed.ids.tolist() == expected_ids
    in_spans = [place for spans in placed.spans for span in spans for place in range(span.start, span.end)]
    assert in_spans == [place for place, one in enumerate(expected_ids) if one == row_id_of(folder)]
    for one, spans in zip(replacements, placed.spans, strict=True):
        assert [span.first_row for span in spans] == [sum(one.run_lengths[:index]) for index in range(len(spans))]


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, name)
    file = picture(70, 45)
    own = own_processor(folder, name)
    settings = own._merge_kwargs(tokenizer_init_kwargs={})["images_kwargs"] | {"return_tensors": "np"}
    expected, _ = own._process_images([Image.open(io.BytesIO(file))], **settings)

    answer, tensors = reader_of(folder).read(file, Detail.HIGH)

    assert "pixel_values" in [tensor.name for tensor in tensors]
    for tensor in tensors:
        wanted = np.asarray(expected[tensor.name])
        values = np.frombuffer(tensor.data, dtype=tensor.dtype).reshape(tensor.shape)
        np.testing.assert_array_equal(values, wanted.astype(tensor.dtype))
    assert answer.num_tensor_bytes == sum(len(tensor.data) for tensor in tensors)
    grid = expected.get("image_grid_thw")
    assert answer.grid == (None if grid is None else tuple(grid[0].tolist()))


def test_pixels_in_bfloat16_are_rounded_as_torch_rounds(tmp_path: Path) -> None:
    import torch

    folder = write_image_family(tmp_path, "llava")
    _, [full] = reader_of(folder).read(picture(70, 45), Detail.HIGH)
    _, [half] = reader_of(folder, dtype="bfloat16").read(picture(70, 45), Detail.HIGH)
    wanted = torch.frombuffer(bytearray(full.data), dtype=torch.float32).to(torch.bfloat16)
    found = torch.frombuffer(bytearray(half.data), dtype=torch.bfloat16)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "high", "low"),
    [("qwen2_vl", 54, 54), ("idefics3", 28, 4), ("smolvlm", 28, 4), ("internvl", 28, 4), ("llava", 16, 16)],
)
def test_low_detail_has_no_tiles(name: str, high: int, low: int, tmp_path: Path) -> None:
    # idefics3: 3 x 2 tiles of 4 tokens and the whole image; internvl: the same number of tiles.
    reader = reader_of(write_image_family(tmp_path, name))
    counts = [reader.read(picture(70, 45), detail)[0].text.count(reader.facts.row_text) for detail in Detail]
    assert counts == [high, low]


def test_low_detail_of_qwen_is_at_most_256_tokens(tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, "qwen3_vl")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["size"] = {"shortest_edge": 64, "longest_edge": 64 * 4096}  # 64 pixels are a token
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    reader = reader_of(folder)
    counts = [reader.read(picture(900, 900), detail)[0].text.count(reader.facts.row_text) for detail in Detail]
    assert counts == [4096, 256]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("qwen2_vl", 21),
        ("mistral3", 21),
        ("idefics3", 21),
        ("internvl", 21),
        ("llava_next", 50),
        ("llava_onevision", 50),
    ],
)
def test_an_image_beyond_the_limit_of_tokens_is_made_smaller(name: str, limit: int, tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, name)
    readers = [reader_of(folder, max_tokens=most) for most in (limit, 4096)]
    few, many = (reader.read(picture(70, 45), Detail.HIGH)[0].text.count(reader.facts.row_text) for reader in readers)
    assert 0 < few <= limit < many


def test_an_image_that_cannot_be_made_smaller_is_refused(tmp_path: Path) -> None:
    reader = reader_of(write_image_family(tmp_path, "llava"), max_tokens=15)
    with pytest.raises(PictureRefused, match=r"16 tokens, the limit is 15 \(--max-image-tokens\)") as refusal:
        reader.read(picture(70, 45), Detail.HIGH)
    assert refusal.value.is_too_large


def test_settings_name_the_processor_and_its_limits(tmp_path: Path) -> None:
    folders = [write_image_family(tmp_path / name, name) for name in ("qwen2_vl", "mistral3", "pixtral")]
    readers = [reader_of(folder) for folder in folders]
    readers += [reader_of(folders[0], max_tokens=100), reader_of(folders[0], dtype="bfloat16")]
    assert len({(reader.facts.kind, reader.facts.settings) for reader in readers}) == len(readers)


def test_a_checkpoint_of_another_processor_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, "llava")
    for file in ("processor_config.json", "tokenizer_config.json"):
        (folder / file).write_text('{"processor_class": "MllamaProcessor"}')
    with pytest.raises(CheckpointUnusable, match="MllamaProcessor"):
        reader_of(folder)
