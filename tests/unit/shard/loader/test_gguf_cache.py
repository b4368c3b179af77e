"""The cache of converted GGUF files. `test_gguf_convert.py` has the contents of its folders."""

import subprocess
import sys
from pathlib import Path

from textmill_shard.loader.gguf_cache import convert_gguf

from tests.fakes.tiny_gguf import write_tiny_gguf

FIND = """
import sys
from pathlib import Path
from textmill_shard.loader.gguf_cache import convert_gguf
print(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2])))
print("transformers" in sys.modules)
"""


def test_a_folder_that_was_made_before_is_found_without_transformers(tmp_path: Path) -> None:
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_tiny_gguf(file)
    folder = convert_gguf(file, cache)
    command = [sys.executable, "-c", FIND, str(file), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [str(folder), "False"]
