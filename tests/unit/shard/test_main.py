"""The command `textmill-shard` around its parts."""

import gc
from pathlib import Path

from textmill_shard.__main__ import main


def test_imports_stay_out_of_the_walks_of_the_collector_which_works_again_behind_them(tmp_path: Path) -> None:
    num_kept = gc.get_freeze_count()
    assert main(["convert", "--gguf", str(tmp_path / "absent.gguf"), "--cache-dir", str(tmp_path)]) != 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > num_kept
