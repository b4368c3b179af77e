"""A change of a file is noticed once, whichever way the file is written."""

import asyncio
import os
from pathlib import Path

import pytest
from textmill_router import file_watch
from textmill_router.file_watch import FileWatch


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "LOOK_INTERVAL_S", 0.005)


def test_each_way_of_a_change_is_noticed(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("1")
    changes: asyncio.Queue[str] = asyncio.Queue()

    async def on_change() -> None:
        changes.put_nowait(one.read_text() + other.read_text())

    async def scenario() -> None:
        watch = FileWatch([str(one), str(other)], on_change)
        one.write_text("22")  # after the making, before the first look
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            assert await changes.get() == "221"
            os.utime(other, ns=(1, 1))
            assert await changes.get() == "221"
            replacement = tmp_path / "replacement"
            replacement.write_text("3")
            replacement.rename(other)
            assert await changes.get() == "223"
            one.unlink()  # a look at this moment would find no file, and is no change
            one.write_text("4")
            assert await changes.get() == "43"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_links_that_lead_elsewhere_are_a_change(tmp_path: Path) -> None:
    """Kubernetes switches the link of a folder when a secret changes."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(version)
        os.utime(tmp_path / version / "keys", ns=(5, 5))
    link = tmp_path / "data"
    link.symlink_to("1")
    seen = asyncio.Event()

    async def on_change() -> None:
        seen.set()

    async def scenario() -> None:
        task = asyncio.create_task(FileWatch([str(link / "keys")], on_change).run())
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(link)
        async with asyncio.timeout(10):
            await seen.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
