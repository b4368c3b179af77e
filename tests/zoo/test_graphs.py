"""Decode steps of the models of the zoo become graphs, whose replays give the logits of steps that are launched anew.

Each model has a graph of rows without adapters, and one of rows with any adapters.

The recorder runs no Python at a replay and refuses reads on the host, as CUDA does. The kernels are stood in for by
plain torch.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.late_tokens import late_reader
from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.zoo.drive import NUM_BLOCKS, NUM_SLOTS, load_zoo_model, make_zoo_model
from tests.zoo.entry import ZooEntry
from tests.zoo.image_drive import load_image_model, make_image_model, make_text
from tests.zoo.image_engine import ImageShard, greedy_reference
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import FLAT

ADAPTER_RANK = 3
NUM_NEW = 6
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


@pytest.mark.parametrize("entry", IMAGE_ENTRIES, ids=lambda entry: entry.name)
def test_answers_about_images_are_those_of_transformers_with_graphs_and_overlap(
    entry: ImageEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    model = make_image_model(entry, tmp_path)
    runner = load_image_model(model, native_cache_dir=None)
    texts = [make_text(entry, runner, num_images=count, seed=count) for count in (1, 0, 2)]
    expected = [greedy_reference(model, text, NUM_NEW) for text in texts]
    for recorder in (None, FakeGraphRecorder(kernels)):
        for reader in (None, late_reader()):
            with ImageShard(runner, recorder=recorder, token_reader=reader) as shard:
                num_replays = 0 if recorder is None else recorder.num_replays
                for text in texts:
                    shard.put_images(text)
                shard.send(admits=[shard.admit_text(slot, text, num_new=NUM_NEW) for slot, text in enumerate(texts)])
                tokens = shard.run_to_end(0, 1, 2)
            assert [tokens[slot] for slot in range(3)] == expected, (recorder, reader)
            assert recorder is None or recorder.num_replays > num_replays + 2
