"""Decode steps of the models of the zoo become graphs, whose replays give the logits of steps that are launched anew.

Each model has a graph of rows without adapters, and one of rows with any adapters.

The recorder runs no Python at a replay and refuses reads on the host, as CUDA does. The kernels are stood in for by
plain torch.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.zoo.drive import NUM_BLOCKS, NUM_SLOTS, load_zoo_model, make_zoo_model
from tests.zoo.entry import ZooEntry
from tests.zoo.image_drive import load_image_model, make_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import FLAT

ADAPTER_RANK = 3
# Families with rotary positions of their own, and one without.
IMAGE_ENTRIES = [entry for entry in IMAGE_ZOO if entry.name in ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Gemma3")]


@pytest.mark.parametrize("entry", FLAT, ids=lambda entry: entry.name)
def test_decode_steps_become_graphs(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    runner = load_zoo_model(make_zoo_model(entry, tmp_path), native_cache_dir=None)
    runner.allocate_kv(NUM_BLOCKS)
    recorder = FakeGraphRecorder(kernels)
    is_recorded = runner.record_graphs(
        recorder, (NUM_SLOTS,), lambda share: None, num_slots=NUM_SLOTS, adapter_rank=ADAPTER_RANK
    )
    reasons = [vars(record)["reason"] for record in caplog.records if hasattr(record, "reason")]
    assert is_recorded, reasons
    assert reasons == []
    assert len(recorder.num_operations) == 2  # without adapters, and with them


@pytest.mark.parametrize("entry", IMAGE_ENTRIES, ids=lambda entry: entry.name)
def test_decode_steps_of_models_with_images_become_graphs(
    entry: ImageEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images lie before the decodes; of some families the rotary positions of decodes follow from them."""
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    runner = load_image_model(make_image_model(entry, tmp_path), native_cache_dir=None)
    runner.allocate_kv(NUM_BLOCKS)
    recorder = FakeGraphRecorder(kernels)
    assert runner.record_graphs(recorder, (NUM_SLOTS,), lambda share: None, num_slots=NUM_SLOTS)
    assert runner.graphs is not None
    assert runner.graphs.sizes.has_rope_positions == entry.name.startswith("Qwen")
