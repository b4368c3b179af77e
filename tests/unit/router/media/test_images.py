"""What is known of an image is not asked again, and images of callers and settings stay apart."""

import asyncio

import pytest
from textmill_router.errors import ImageCode, ImageRefused, Overloaded
from textmill_router.media.image_shelf import ImageShelf
from textmill_router.media.image_source import Detail
from textmill_router.media.images import ImageLost, Images
from textmill_router.media.media_item import TensorPart
from textmill_router.media.worker_messages import ImageAnswer, ImageRefusal, ProcessorFacts
from textmill_router.media.worker_pool import ReadImage
from textmill_router.request import token_array

FACTS = ProcessorFacts(kind="tiny", placeholder="<i>", row_text="r", row_id=9, settings="s")


class Pool:
    """Reads an image as one row for each byte; counts, and refuses what `refusals` names."""

    def __init__(self, refusals: dict[bytes, ImageRefusal] | None = None) -> None:
        self.refusals = refusals or {}
        self.num_reads = 0

    async def read(self, data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
        self.num_reads += 1
        if data in self.refusals:
            return self.refusals[data]
        tensor = TensorPart("pixel_values", "bool", (len(data),), bytes(len(data)))
        return ReadImage(ImageAnswer("(" + "r" * len(data) + ")", None, len(data)), (tensor,))

    async def close(self) -> None: ...


def images_of(pool: Pool, *, max_tensor_bytes: int = 1000, facts: ProcessorFacts = FACTS) -> Images:
    return Images(pool, facts, ImageShelf(max_tensor_bytes))  # type: ignore[arg-type]


def test_an_image_is_read_once() -> None:
    async def work() -> None:
        pool = Pool()
        images = images_of(pool)
        first = await images.read(b"abc", Detail.HIGH, field="f")
        again = await images.read(b"abc", Detail.HIGH, field="g")
        assert (again.digest, again.facts, again.field) == (first.digest, first.facts, "g")
        assert (first.text, first.rows.run_lengths) == ("(r)", (3,))
        assert await again.prepare() is await first.prepare()
        assert pool.num_reads == 1

    asyncio.run(work())


def test_equal_images_of_calls_at_a_time_are_read_once() -> None:
    async def work() -> None:
        pool, may_answer = Pool(), asyncio.Event()
        read = pool.read

        async def read_slowly(data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
            found = await read(data, detail)
            await may_answer.wait()
            return found

        pool.read = read_slowly  # type: ignore[method-assign]
        images = images_of(pool)
        leaving, staying = [asyncio.create_task(images.read(b"abc", Detail.HIGH, field=name)) for name in "fg"]
        other = asyncio.create_task(images.read(b"abc", Detail.HIGH, field="h", salt=b"caller"))
        await asyncio.sleep(0)
        leaving.cancel()
        may_answer.set()
        assert [(image.field, image.is_new) for image in await asyncio.gather(staying, other)] == [
            ("g", True),
            ("h", True),
        ]
        assert pool.num_reads == 2  # another caller's image has another name
        assert not (await images.read(b"abc", Detail.HIGH, field="f")).is_new

    asyncio.run(work())


def test_a_reading_that_fails_fails_for_all_who_wait_and_is_tried_again() -> None:
    async def work() -> None:
        pool = Pool()
        read = pool.read

        async def fail(data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
            await asyncio.sleep(0)
            raise Overloaded("too much", retry_after_s=1)

        pool.read = fail  # type: ignore[method-assign]
        images = images_of(pool)
        calls = [images.read(b"abc", Detail.HIGH, field="f") for _ in range(2)]
        assert [type(found) for found in await asyncio.gather(*calls, return_exceptions=True)] == [Overloaded] * 2
        pool.read = read  # type: ignore[method-assign]
        assert (await images.read(b"abc", Detail.HIGH, field="f")).is_new

    asyncio.run(work())


def test_names_of_images_differ_by_bytes_detail_caller_and_settings() -> None:
    async def work() -> None:
        images = images_of(Pool())
        others = [
            images_of(Pool(), facts=ProcessorFacts("tiny", "<i>", "r", 9, "t")),
            images_of(Pool(), facts=ProcessorFacts("other", "<i>", "r", 9, "s")),
        ]
        found = [
            await images.read(b"abc", Detail.HIGH, field="f"),
            await images.read(b"abd", Detail.HIGH, field="f"),
            await images.read(b"abc", Detail.LOW, field="f"),
            await images.read(b"abc", Detail.HIGH, field="f", salt=b"caller"),
            *[await other.read(b"abc", Detail.HIGH, field="f") for other in others],
        ]
        assert len({image.digest for image in found}) == 6
        assert all(len(image.digest) == 16 for image in found)

    asyncio.run(work())


def test_tensors_that_are_not_kept_are_made_again() -> None:
    async def work() -> None:
        pool = Pool()
        images = images_of(pool, max_tensor_bytes=4)
        first = await images.read(b"abc", Detail.HIGH, field="f")
        await images.read(b"de", Detail.HIGH, field="f")  # 3 + 2 bytes are more than 4
        assert pool.num_reads == 2
        assert (await first.prepare())[0].shape == (3,)
        assert pool.num_reads == 3
        pool.refusals[b"abc"] = ImageRefusal("gone")
        await images.read(b"fg", Detail.HIGH, field="f")
        with pytest.raises(ImageLost, match="gone"):
            await first.prepare()

    asyncio.run(work())


@pytest.mark.parametrize(("is_final", "num_reads"), [(True, 1), (False, 2)])
def test_a_refusal_is_kept_where_it_is_final(is_final: bool, num_reads: int) -> None:
    async def work() -> None:
        pool = Pool({b"bad": ImageRefusal("it is bad", is_too_large=True, is_final=is_final)})
        images = images_of(pool)
        for _ in range(2):
            with pytest.raises(ImageRefused, match="`f`: the image cannot be used: it is bad") as refusal:
                await images.read(b"bad", Detail.HIGH, field="f")
            assert (refusal.value.code, refusal.value.field) == (ImageCode.TOO_LARGE, "f")
        assert pool.num_reads == num_reads

    asyncio.run(work())


def test_a_prompt_gets_items_in_order() -> None:
    async def work() -> None:
        images = images_of(Pool())
        known = [await images.read(data, Detail.HIGH, field="f") for data in (b"ab", b"c")]
        found = images.place(token_array([1, 9, 2, 9]), known)
        assert found is not None
        assert found.ids.tolist() == [1, 9, 9, 2, 9]
        assert [(item.kind, item.num_rows, item.num_tensor_bytes) for item in found.items] == [
            ("tiny", 2, 2),
            ("tiny", 1, 1),
        ]
        assert [[(span.start, span.num_tokens) for span in item.spans] for item in found.items] == [[(1, 2)], [(4, 1)]]
        assert images.place(token_array([1, 9]), known) is None

    asyncio.run(work())


def test_the_shelf_keeps_the_last_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_router.media.image_shelf.MAX_KEPT_VERDICTS", 2)
    shelf = ImageShelf(10)
    for name in (b"a", b"b"):
        shelf.keep_verdict(name, ImageRefusal(name.decode()))
    assert shelf.verdict(b"a") == ImageRefusal("a")
    shelf.keep_verdict(b"c", ImageRefusal("c"))
    assert shelf.verdict(b"b") is None
    assert shelf.verdict(b"a") is not None
