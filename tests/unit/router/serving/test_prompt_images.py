"""The images of a call: their number, their sources, what the shard can take, and where they stand in a prompt."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import pytest
from textmill_router.chat.template import ChatTemplates
from textmill_router.errors import ImageCode, ImageRefused, Overloaded, RuleBroken, TemplateFailed, ValidationFailed
from textmill_router.media.image_source import Detail, ImageSource
from textmill_router.media.images import Images, KnownImage
from textmill_router.media.limits import ImageLimits
from textmill_router.media.media_item import TensorPart
from textmill_router.media.url_fetch import UrlFetcher
from textmill_router.media.worker_messages import ImageAnswer, ImageRefusal, ProcessorFacts
from textmill_router.media.worker_pool import ReadImage
from textmill_router.request import token_array
from textmill_router.serving.prompt_images import MediaBounds, PromptImages

from tests.fakes.image_families import LLAVA_TEMPLATE, QWEN_TEMPLATE, SMOL_TEMPLATE

ROW_ID = 9
PLAIN = MediaBounds(cache_bytes=10_000, row_bytes=10)


class Pool:
    """Makes three rows of every image, five of `large`, but refuses `bad` and has no room for `busy`."""

    def __init__(self) -> None:
        self.at_work = 0

    async def read(self, data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
        self.at_work += 1
        try:
            await asyncio.sleep(0)
        finally:
            self.at_work -= 1
        if data == b"bad":
            return ImageRefusal("it is bad")
        if data == b"busy":
            raise Overloaded("too many images", retry_after_s=1)
        num_rows = 5 if data == b"large" else 3
        return ReadImage(ImageAnswer("<image>" * num_rows, None, 100), (TensorPart("p", "bool", (100,), bytes(100)),))

    async def close(self) -> None: ...


def prompt_images(
    template: str = LLAVA_TEMPLATE,
    bounds: MediaBounds = PLAIN,
    *,
    placeholder: str = "<image>",
    bos: str = "",
    max_images: int = 8,
    fetcher: UrlFetcher | None = None,
) -> PromptImages:
    facts = ProcessorFacts("tiny", placeholder, "<image>", ROW_ID, "s", bos)
    templates = ChatTemplates({"default": template} if template else {}, {})
    images = Images(Pool(), facts)  # type: ignore[arg-type]
    return PromptImages(images, fetcher or UrlFetcher(()), ImageLimits(max_images=max_images), bounds, templates)


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def sources(*data: bytes) -> list[ImageSource]:
    return [ImageSource(data_url(one), f"f{index}") for index, one in enumerate(data)]


def read(images: PromptImages, *data: bytes) -> tuple[KnownImage, ...]:
    return asyncio.run(images.read(sources(*data), salt=b""))


def test_images_come_in_order() -> None:
    assert [image.field for image in read(prompt_images(), b"a", b"b", b"a")] == ["f0", "f1", "f2"]


def test_the_first_bad_image_ends_the_call_and_the_other_work() -> None:
    images = prompt_images()
    for data, error in ((b"bad", ImageRefused), (b"busy", Overloaded)):
        with pytest.raises(error):
            read(images, b"a", data, b"b")
    assert images._images._pool.at_work == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (data_url(b"bad"), "image 2 in `inputs`: the image cannot be used: it is bad"),
        ("data:text/plain,a", "image 2 in `inputs` must be data:image/<type>;base64, "),
        ("data:image/png;base64,%%", "image 2 in `inputs` is not standard base64: "),
        ("http://a.com/x.png", "image 2 in `inputs` is not an allowed URL of an image: "),
    ],
)
def test_a_bad_image_in_a_text_is_told_by_its_number(bad: str, words: str) -> None:
    images = prompt_images()
    text = f"a ![]({data_url(b'a')}) b ![]({bad}) c ![]({data_url(b'b')})"
    with pytest.raises(ImageRefused) as several:
        asyncio.run(images.in_text(text, field="inputs", salt=b""))
    assert str(several.value).startswith(words)
    assert several.value.field == "inputs"
    with pytest.raises(ImageRefused) as alone:
        asyncio.run(images.in_text(f"a ![]({bad}) b", field="inputs", salt=b""))
    assert str(alone.value).startswith(words.removeprefix("image 2 in "))
    assert alone.value.code == several.value.code


def test_too_many_images_are_told_by_the_first_beyond() -> None:
    with pytest.raises(ValidationFailed, match=r"at most 2 images \(--max-images\), found 3") as error:
        read(prompt_images(max_images=2), b"a", b"b", b"c")
    assert error.value.field == "f2"


def test_four_images_of_a_call_are_fetched_at_a_time() -> None:
    class Fetcher(UrlFetcher):
        most = now = 0

        async def fetch(self, url: str, *, field: str, max_bytes: int) -> bytes:
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(5):
                await asyncio.sleep(0)
            self.now -= 1
            return url.encode()

    fetcher = Fetcher(())
    images = prompt_images(max_images=20, fetcher=fetcher)
    asked = [ImageSource(f"http://a.com/{index}", "f") for index in range(12)]
    assert len(asyncio.run(images.read(asked, salt=b""))) == 12
    assert fetcher.most == 4


@pytest.mark.parametrize(
    ("bounds", "num_before", "words"),
    [
        (MediaBounds(cache_bytes=399, row_bytes=10), 0, "may take 199 bytes .* these take 200"),
        (MediaBounds(cache_bytes=10_000, row_bytes=2000), 0, "may take 5000 bytes .* these take 12000"),
        (MediaBounds(10_000, 10, max_span_tokens=2), 0, "reads an image in one step of at most 2 tokens .*found 3"),
        (MediaBounds(10_000, 10, max_prompt_tokens=10), 5, "a prompt with images in one step .* 10 tokens .*found 11"),
    ],
)
def test_what_the_shard_cannot_take_is_refused(bounds: MediaBounds, num_before: int, words: str) -> None:
    images = prompt_images(bounds=bounds)
    known = read(images, b"a", b"b")
    ids = token_array([*[1] * num_before, ROW_ID, ROW_ID])
    with pytest.raises(ImageRefused, match=words) as error:
        images.place(ids, known)
    assert (error.value.field, error.value.code) == ("f0", ImageCode.TOO_LARGE)


def test_the_image_that_a_step_cannot_take_is_named() -> None:
    images = prompt_images(bounds=MediaBounds(10_000, 10, max_span_tokens=4))
    known = read(images, b"a", b"large", b"b")
    with pytest.raises(ImageRefused, match="found 5 for image 2 of 3") as error:
        images.place(token_array([ROW_ID] * 3), known)
    assert error.value.field == "f1"
    with pytest.raises(ImageRefused, match=r"found 5$"):
        images.place(token_array([ROW_ID]), known[1:2])


def test_what_the_shard_can_just_take_passes() -> None:
    bounds = MediaBounds(cache_bytes=400, row_bytes=10, max_span_tokens=3, max_prompt_tokens=11)
    images = prompt_images(bounds=bounds)
    placed = images.place(token_array([1, 1, 1, 1, 1, ROW_ID, ROW_ID]), read(images, b"a", b"b"))
    assert [span.start for item in placed.items for span in item.spans] == [5, 8]
    # The same image twice is kept once.
    twice = prompt_images(bounds=MediaBounds(cache_bytes=200, row_bytes=10))
    assert len(twice.place(token_array([ROW_ID, ROW_ID]), read(twice, b"a", b"a")).items) == 2


def test_a_prompt_without_images_has_no_bounds_and_no_rows() -> None:
    images = prompt_images(bounds=MediaBounds(0, 10, 1, 1))
    assert images.place(token_array([1, 2, 3]), ()).items == ()
    with pytest.raises(RuleBroken, match="stands for an image"):
        images.place(token_array([1, ROW_ID]), ())


def test_a_template_shows_each_image_once() -> None:
    images = prompt_images()
    [known] = read(images, b"a")
    assert images.fill(["x<image>", "y"], [known]) == ("x<image>", "y")
    assert images.fill(["x<image>"], [known], has_all_rows=True) == ("x<image><image><image>",)
    for pieces in (["none"], ["<image><image>"]):
        with pytest.raises(TemplateFailed, match="does not show each of the 1 images once"):
            images.fill(pieces, [known])
    with pytest.raises(TemplateFailed):
        images.fill(["<image>"], [])


def parts_of(images: PromptImages, text: str) -> Sequence[str]:
    url = f"![]({sources(b'a')[0].url})"
    found = asyncio.run(images.in_text(text.replace("@", url), field="inputs", salt=b""))
    return images.parts(found)


@pytest.mark.parametrize(
    ("template", "placeholder", "shown"),
    [
        (LLAVA_TEMPLATE, "<image>", "<image>\n"),
        (SMOL_TEMPLATE, "<image>", "<image>"),
        (QWEN_TEMPLATE, "<|image_pad|>", "<|vision_start|><image><|vision_end|>"),
        ("{{ messages[0]['content'] }}", "<image>", "<image>"),  # shows no image
        ("", "<image>", "<image>"),
    ],
)
def test_an_image_in_a_text_is_shown_as_the_template_shows_it(template: str, placeholder: str, shown: str) -> None:
    images = prompt_images(template, placeholder=placeholder)
    assert parts_of(images, "a @b@") == ["a ", shown, "b", shown, ""]
    assert parts_of(images, "a ![alt](x)") == ["a ![alt](x)"]


def test_paligemma_has_its_first_token_behind_the_last_image() -> None:
    images = prompt_images("", bos="<bos>")
    assert "".join(parts_of(images, "a@b@c")) == "a<image>b<image><bos>c\n"
    assert "".join(parts_of(images, "text alone")) == "text alone"
    [known] = read(images, b"a")
    assert images.fill(["x<image>y", "z"], [known]) == ("x<image><bos>y", "z\n")


@pytest.mark.parametrize("text", ["<image>", "a <image> @"])
def test_a_text_cannot_hold_the_token_of_images(text: str) -> None:
    with pytest.raises(ValidationFailed, match="`inputs` must not hold '<image>'") as error:
        parts_of(prompt_images(), text)
    assert error.value.field == "inputs"


@pytest.mark.parametrize(
    ("prompt", "bos_token", "expected"), [("<s>a", "<s>", False), ("a", "<s>", True), ("a", None, True)]
)
def test_special_tokens_are_added_as_processors_add_them(prompt: str, bos_token: str | None, expected: Any) -> None:
    assert prompt_images().adds_special_tokens(prompt, bos_token) is expected
    assert prompt_images("", bos="<s>").adds_special_tokens(prompt, bos_token) is False
