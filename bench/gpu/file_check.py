"""Loads a model from its files as a shard does, and compares the tokens of its step loop with those of transformers."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from textmill_shard.loader.load_options import LoadOptions

from bench.gpu.loop_checks import DRY_SMALL, SMALL, loop_of, requests_of, tokens_of_transformers
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, fill_pool, make_model

NUM_BLOCKS = 64


def check_files(setting: Setting) -> Iterator[Row]:
    """Yield whether the loaded model runs by the kernels, and whether its greedy tokens are those of transformers."""
    if importlib.util.find_spec("accelerate") is None:
        yield Row("a model of files", {"not run": "because the loader needs accelerate"})
        return
    from textmill_shard.loader.model_loader import load_model  # which imports accelerate

    sizes = DRY_SMALL if setting.is_dry else SMALL
    request = requests_of(setting, sizes)[0]
    with tempfile.TemporaryDirectory() as folder:
        make_model(setting, sizes).save_pretrained(folder)
        options = LoadOptions(
            model_dir=Path(folder), dtype="float32", device=str(setting.device), block_size=BLOCK_SIZE, num_slots=1
        )
        runner = load_model(options, lambda phase, share: None)
    # The shard falls back to plain torch with a warning where the kernels cannot be had.
    yield Row(
        "loaded by the kernels", {"layout": runner.facts.layout}, setting.is_dry or runner.device_scans is not None
    )
    fill_pool(runner, NUM_BLOCKS)
    with loop_of(runner, NUM_BLOCKS, len(request.prompt), 1, has_overlap=not setting.is_dry) as loop:
        [found] = loop.run([request]).tokens
    expected = tokens_of_transformers(setting, sizes, request)
    num_other = sum(mine != theirs for mine, theirs in zip(expected, found, strict=True))
    yield Row("greedy tokens as by transformers", {"tokens": len(found), "other tokens": num_other}, num_other == 0)
