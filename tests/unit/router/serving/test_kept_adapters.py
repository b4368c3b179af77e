"""The file with the names of adapters that a router leaves for the next one."""

from pathlib import Path

import pytest
from textmill_router.serving.kept_adapters import KeptAdapter, read_kept, write_kept

POET = KeptAdapter("poet", "/adapters/poet", bytes(range(16)))
CLERK = KeptAdapter("a clerk: \u00e9", "/adapters/clerk", bytes(16))


def test_the_last_names_are_read_again_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "adapters.json"
    assert read_kept(path) is None
    write_kept(path, [POET])
    write_kept(path, [CLERK, POET])
    assert read_kept(path) == [CLERK, POET]
    write_kept(path, [])
    assert read_kept(path) == []
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "[", "[1]", '[{"name": "a"}]', '[{"name": "a", "folder": "b", "digest": "x"}]'])
def test_a_damaged_file_counts_as_none_with_a_line_in_the_log(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "adapters.json"
    path.write_text(text)
    assert read_kept(path) is None
    assert "not known" in caplog.text


def test_links_are_not_followed(tmp_path: Path) -> None:
    write_kept(tmp_path / "other.json", [POET])
    (tmp_path / "adapters.json").symlink_to(tmp_path / "other.json")
    assert read_kept(tmp_path / "adapters.json") is None


def test_a_folder_that_cannot_be_written_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_kept(tmp_path / "gone" / "adapters.json", [POET])
    assert "will not know" in caplog.text
