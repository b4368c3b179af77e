"""The private folder of a launcher, and the folders that killed launchers have left behind."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from textmill_launcher.errors import SettingsError
from textmill_launcher.private_folder import OWNER_FILE, private_folder, remove_orphans

OWNER = """
import sys
from textmill_launcher.private_folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of these tests and of their processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that has a private folder."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_folder_is_private_and_gone_at_the_end() -> None:
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "shard-0").touch()
    assert not folder.exists()


def test_folder_is_locked_against_programs_that_remove_old_files() -> None:
    with private_folder() as folder:
        other = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as systemd-tmpfiles asks
        finally:
            os.close(other)


def test_folder_of_a_killed_owner_goes_with_the_next_start() -> None:
    with owner() as (process, folder):
        (folder / "shard-0").touch()
        with private_folder():
            assert (folder / "shard-0").exists()  # its owner lives
        process.kill()
        process.wait()
        assert folder.exists()
        with private_folder() as own:
            assert not folder.exists()
            assert own.exists()


def test_no_place_for_a_folder_is_told_with_the_way_out(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "none"))
    with pytest.raises(SettingsError, match=r"no place for temporary files: .*No such file.* TMPDIR"):
        private_folder().__enter__()


def test_folder_without_the_owners_file_may_be_about_to_get_one(parent: Path) -> None:
    (parent / "textmill-new").mkdir(mode=0o700)
    (parent / "textmill-new" / f"{OWNER_FILE}.new").touch()
    remove_orphans(parent)
    assert (parent / "textmill-new").exists()


def test_strange_folders_and_links_are_left_alone(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / OWNER_FILE).touch()
    (parent / "textmill-link").symlink_to(elsewhere)
    open_folder = parent / "textmill-open"
    open_folder.mkdir()
    open_folder.chmod(0o755)  # a private folder has mode 0700
    (open_folder / OWNER_FILE).touch()
    linked = parent / "textmill-linked"
    linked.mkdir(mode=0o700)
    (linked / OWNER_FILE).symlink_to(elsewhere / OWNER_FILE)
    (parent / "textmill-file").touch()
    before = sorted(os.listdir(parent))
    remove_orphans(parent)
    assert sorted(os.listdir(parent)) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_folder_of_another_user_is_left_alone(parent: Path) -> None:
    folder = parent / "textmill-theirs"
    folder.mkdir(mode=0o700)
    (folder / OWNER_FILE).touch()
    os.chown(folder, 12345, 12345)
    remove_orphans(parent)
    assert folder.exists()
    os.chown(folder, 0, 0)
    remove_orphans(parent)
    assert not folder.exists()
