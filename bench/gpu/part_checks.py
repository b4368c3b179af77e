"""A check on the device that two ranks that share a vocabulary draw what one rank draws.

Both ranks are on one device, and what they send is laid together without a group.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.wish_upload import build_step_rows
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.part_rows import WholeRows
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams

from bench.gpu.report import Row
from bench.gpu.setting import Setting

VOCABULARY = 128_256
DRY_VOCABULARY = 321
NUM_CANDIDATES = 64  # few, so that some draws need whole rows
REPEATS = 8


def check_parts(setting: Setting, samplings: Sequence[SamplingParams]) -> Iterator[Row]:
    """Yield a row with the number of rows whose token is another one than that of one rank."""
    vocab_size = DRY_VOCABULARY if setting.is_dry else VOCABULARY
    random = torch.Generator().manual_seed(5)
    num_rows, num_other, num_whole = len(samplings), 0, 0
    for _ in range(REPEATS):
        logits_NV = (torch.randn(num_rows, vocab_size, generator=random) * 3).to(setting.device)
        sampler = Sampler(
            num_slots=num_rows,
            device=setting.device,
            num_candidates=NUM_CANDIDATES,
            scanner=DeviceRowScanner(setting.kernels),
        )
        for slot, params in enumerate(samplings):
            sampler.admit(slot, params, SlotText(np.arange(5, 300)))
        rows = build_step_rows(sampler.select(np.arange(num_rows)), setting.device)
        expected_N = sampler.sample(logits_NV, rows).tokens_N
        sizes = (vocab_size // 2 + 1, vocab_size - vocab_size // 2 - 1)
        sides = [PartSampler(sampler, SharedVocabulary(TensorParallel(rank, 2), sizes)) for rank in (0, 1)]
        parts = [part.contiguous() for part in torch.split(logits_NV, list(sizes), dim=1)]
        gifts = [side.give(part, rows) for side, part in zip(sides, parts, strict=True)]
        words_PW = torch.stack([gift.words_W for gift in gifts])
        draft = sides[0].draft(gifts[0], sides[0].join(gifts[0], words_PW), rows)
        sampled = draft.sampled
        if draft.open_N is not None and len(looked := np.flatnonzero(draft.open_N.cpu().numpy())):
            places = torch.from_numpy(looked).to(setting.device)
            logits_OV = torch.cat([gift.logits_NV for gift in gifts], dim=1)[places]
            scores_OV = torch.cat([gift.scores_NV for gift in gifts], dim=1)[places]
            sampled = sides[0].settle(draft, WholeRows(looked, logits_OV, scores_OV))
            num_whole += len(looked)
        num_other += int((sampled.tokens_N != expected_N).sum())
    yield Row(
        "two ranks draw from candidates what one rank draws",
        {"rows": REPEATS * num_rows, "laid together": num_whole, "other tokens": num_other},
        num_other == 0,
    )
