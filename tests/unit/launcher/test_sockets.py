"""The paths of the shards' sockets."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from textmill_launcher.errors import SettingsError
from textmill_launcher.sockets import SocketPlaces, close_to_others, free_port, socket_places


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_sockets_of_replicas_follow_each_other() -> None:
    places = SocketPlaces("/run/s")
    assert [str(places.of_replica(replica, 4).of(rank)) for replica in (0, 1) for rank in (0, 3)] == [
        *("/run/s-0", "/run/s-3"),
        *("/run/s-4", "/run/s-7"),
    ]


def test_folder_is_private_and_gone_at_the_end() -> None:
    with socket_places(None, num_shards=2) as places:
        folder = places.of(0).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert places.of(1) == folder / "shard-1"
        listen(places.of(0))
    assert not folder.exists()


def test_folder_is_removed_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path
    try:
        with socket_places(None, num_shards=1) as places:
            folder = places.of(0).parent
            raise KeyError
    except KeyError:
        assert not folder.exists()


def test_stale_sockets_of_a_prefix_are_removed_before_and_after(tmp_path: Path) -> None:
    listen(tmp_path / "mill-1")
    (tmp_path / "mill-0").write_text("no socket: not ours to remove")
    (tmp_path / "mill-adapters.json").write_text("names of an earlier run")
    with socket_places(str(tmp_path / "mill"), num_shards=2) as places:
        assert not places.of(1).exists()
        assert not places.adapters_file.exists()
        places.adapters_file.write_text("names of this run")
        listen(places.of(1))
    assert sorted(os.listdir(tmp_path)) == ["mill-0"]


@pytest.mark.parametrize(
    ("mode", "is_taken"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o770, False)]
)
def test_folder_of_a_prefix_is_not_one_where_others_replace_files(tmp_path: Path, mode: int, is_taken: bool) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    folder.chmod(mode)
    if is_taken:
        with socket_places(str(folder / "s"), num_shards=1) as places:
            assert places.of(0) == folder / "s-0"
    else:
        with pytest.raises(SettingsError, match="mode 0700"), socket_places(str(folder / "s"), num_shards=1):
            pass


def test_temporary_files_need_a_place_with_a_prefix_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(SettingsError, match="No usable temporary"), socket_places(str(tmp_path / "s"), num_shards=1):
        pass


def test_folder_of_a_prefix_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no folder"), socket_places(str(tmp_path / "a" / "s"), 1):
        pass


def test_socket_is_closed_to_others(tmp_path: Path) -> None:
    listen(tmp_path / "s")
    close_to_others(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    close_to_others(tmp_path / "gone")


def test_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port("127.0.0.1")))
