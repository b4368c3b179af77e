"""The watermark is found in the demo model's texts that have it, and not found in texts without it."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.sampling.watermark import detect_watermark
from textmill_shard.settings import ServeSettings, load_settings
from textmill_shard.slots.plan import Admit
from textmill_shard.slots.sampling_params import SamplingParams
from tokenizers import Tokenizer

from tests.fakes.shard_facts import facts_of
from tests.fakes.step_harness import Shard, ids

NUM_SEEDS = 20
NUM_NEW_TOKENS = 200
BLOCK_SIZE = 16
BLOCKS_PER_SLOT = 14
PROMPT = "The history of the town begins"


@pytest.mark.slow  # 40 texts of 200 tokens by the real model, in one batch, with the weights as they are served
def test_watermarked_text_is_told_from_plain_text(demo_model_folder: Path) -> None:
    torch.set_num_threads(2)
    settings = load_settings(["serve", "--model-dir", str(demo_model_folder), "--uds-path", "unused"], {})
    assert isinstance(settings, ServeSettings)
    options = LoadOptions(
        model_dir=demo_model_folder,
        dtype="bfloat16",
        block_size=BLOCK_SIZE,
        native_cache_dir=settings.native_cache_dir,
        num_threads=2,
    )
    runner = load_model(options, lambda phase, part: None)
    num_slots = 2 * NUM_SEEDS
    runner.allocate_kv(num_slots * BLOCKS_PER_SLOT)
    facts = facts_of(
        runner,
        block_size=BLOCK_SIZE,
        num_blocks=num_slots * BLOCKS_PER_SLOT,
        num_slots=num_slots,
        max_step_tokens=512,
    )
    prompt = Tokenizer.from_file(str(demo_model_folder / "tokenizer.json")).encode(PROMPT).ids
    plain = SamplingParams(do_sample=True, temperature=1.0)
    admits = [
        Admit(
            request_id=slot + 1,
            slot=slot,
            prompt_ids=ids(prompt),
            output_ids=ids([]),
            num_cached_tokens=0,
            block_ids=np.arange(slot * BLOCKS_PER_SLOT, (slot + 1) * BLOCKS_PER_SLOT),
            max_new_tokens=NUM_NEW_TOKENS,
            sampling=replace(plain, seed=slot // 2, watermark=bool(slot % 2)),
            ignore_eos=True,
        )
        for slot in range(num_slots)
    ]
    with Shard(facts=facts, runner=runner, lease_s=300.0) as shard:
        shard.send(admits=admits)
        texts = shard.run_to_end(*range(num_slots))
    scores = [detect_watermark(texts[slot], previous_id=prompt[-1]).z_score for slot in range(num_slots)]
    assert all(len(text) == NUM_NEW_TOKENS for text in texts.values())
    assert median(scores[1::2]) > 4, scores[1::2]
    assert abs(median(scores[0::2])) < 1.5, scores[0::2]
