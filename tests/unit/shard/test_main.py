"""The command `textmill-shard` around its parts."""

import gc
from pathlib import Path

from textmill_shard.__main__ import main
from textmill_shard.errors import WRONG_SETTING

from tests.fakes.gguf_files import make_model, write_gguf


def test_imports_stay_out_of_the_walks_of_the_collector_which_works_again_behind_them(tmp_path: Path) -> None:
    num_kept = gc.get_freeze_count()
    assert main(["convert", "--gguf", str(tmp_path / "absent.gguf"), "--cache-dir", str(tmp_path)]) != 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > num_kept


def test_cache_that_cannot_be_written_is_a_wrong_setting(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_model("llama"), "llama")
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    assert main(["convert", "--gguf", str(tmp_path / "model.gguf"), "--cache-dir", str(cache)]) == WRONG_SETTING


def test_other_errors_of_files_are_not_blamed_on_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "model.gguf"  # the model's own path is no folder
    code = main(["convert", "--gguf", str(below), "--cache-dir", str(tmp_path / "cache")])
    assert code not in (0, WRONG_SETTING)
