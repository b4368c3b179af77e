"""Models load on a GPU whose tensors have values, and answer as on a CPU. What mixes the two devices raises.

Chunks, rotary tables by the length of a text, sinks, states, encoders, attention of a model's own and images ask most
of the code that runs at the start, which looks at a model by running it. The kernels are stood in for by plain torch.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard import lifecycle
from textmill_shard.device import pick_device
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.token_reader import HostMark, TokenReader
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.media import TokenSpan
from textmill_shard.model.runner import ModelRunner
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.settings import ServeSettings, load_settings
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.fakes.step_harness import Shard, admit
from tests.fakes.tiny_models import make_tiny_llama
from tests.fakes.valued_gpu import GpuMode, GpuTensor, valued_gpu
from tests.zoo.drive import BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS, make_zoo_model, zoo_facts
from tests.zoo.entry import ZooEntry
from tests.zoo.image_drive import make_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import ZOO

TEXTS = ("llama4", "phi3, long context", "gpt_oss", "mamba", "t5", "codegen")
IMAGES = ("Qwen2-VL", "Qwen3-VL", "Gemma3", "Idefics3")
# Of each kind of request some numbers that lie on the device.
SAMPLINGS = (
    SamplingParams(do_sample=True, seed=3, repetition_penalty=1.3, top_n_tokens=3, wants_logprobs=True, watermark=True),
    SamplingParams(do_sample=True, temperature=2.0, seed=4, typical_p=0.9, logit_bias=((5, 1.0),), allowed_ids=(1, 9)),
    SamplingParams(dry_multiplier=1.0, frequency_penalty=0.5, bad_sequences=((2, 3),), no_repeat_ngram_size=2),
)


def load(folder: Path, device: str) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", device=device, block_size=BLOCK_SIZE, num_slots=NUM_SLOTS)
    return load_model(options, lambda phase, share: None)


@pytest.mark.parametrize("entry", [each for each in ZOO if each.name in TEXTS], ids=lambda each: each.name)
def test_a_model_loads(entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zoo_model(entry, tmp_path)
    load_by(monkeypatch, PlainKernels())
    with valued_gpu(monkeypatch):
        runner = load(tmp_path, "cuda:0")
    assert runner.facts.layout == entry.layout
    weights = [weight for module in runner.modules() for weight in module.parameters(recurse=False)]
    assert weights
    assert all(isinstance(weight, GpuTensor) for weight in weights)


@pytest.mark.parametrize("entry", [each for each in IMAGE_ZOO if each.name in IMAGES], ids=lambda each: each.name)
def test_a_model_with_images_loads_and_encodes_one(
    entry: ImageEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image_model(entry, tmp_path)
    tensors = entry.make_image(torch.Generator().manual_seed(1))
    expected_nD = load(tmp_path, "cpu").encode_media(tensors).rows_nD
    load_by(monkeypatch, PlainKernels())
    with valued_gpu(monkeypatch):
        runner = load(tmp_path, "cuda:0")
        rows_nD = runner.encode_media({name: tensor.to(runner.device) for name, tensor in tensors.items()}).rows_nD
        assert rows_nD.device.type == "cuda"
        assert torch.allclose(rows_nD.cpu(), expected_nD, atol=1e-5)
        assert runner.media is not None
        if runner.media.has_rope_positions:
            span = TokenSpan(start=2, num_tokens=len(rows_nD), first_row=0)
            facts = {name: tensors[name] for name in runner.media.position_tensors}
            ids = [1, 2, *[entry.image_id] * span.num_tokens, 3]
            assert runner.rope_positions(ids, [span], [facts]).positions_3P.shape == (3, len(ids))


def answer(runner: ModelRunner, *, has_overlap: bool) -> list[Any]:
    """Return what requests of all samplings get, with log-probabilities of the prompt of the second."""
    scans = runner.device_scans
    sampler = Sampler(
        num_slots=NUM_SLOTS,
        device=runner.device,
        num_candidates=16,  # so that a row may have to look at more of its scores
        scanner=None if scans is None else DeviceRowScanner(scans),
    )
    reader = TokenReader(runner.device, mark=lambda _: HostMark(time.monotonic_ns())) if has_overlap else None
    with Shard(facts=zoo_facts(runner), runner=runner, token_reader=reader, sampler=sampler) as shard:
        admits = [
            admit(slot, [5, 9, 2, 7, 7][: slot + 3], max_new=12 - 2 * slot, sampling=sampling)
            for slot, sampling in enumerate(SAMPLINGS)
        ]
        admits[1] = replace(admits[1], prompt_logprobs_from=1, prompt_top_n_tokens=2)
        shard.send(admits=admits)
        tokens = shard.run_to_end(*range(len(admits)))
    assert shard.error is None
    assert [error for result in shard.results for error in result.errors] == []
    [piece] = [piece for result in shard.results for piece in result.prompt_logprobs]
    return [tokens, piece.logprobs.round(4).tolist(), piece.top_ids.tolist()]


@pytest.mark.parametrize("has_graphs", [False, True], ids=["launch by launch", "graphs and overlap"])
def test_requests_get_the_tokens_of_a_cpu(has_graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_llama(tmp_path, layers=2, seed=4)
    plain = load(tmp_path, "cpu")
    plain.allocate_kv(NUM_BLOCKS)
    expected = answer(plain, has_overlap=False)
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    run = Engine.run

    def run_on_gpu(engine: Engine) -> None:
        with GpuMode():
            run(engine)

    monkeypatch.setattr(Engine, "run", run_on_gpu)
    with valued_gpu(monkeypatch):
        runner = load(tmp_path, "cuda:0")
        runner.allocate_kv(NUM_BLOCKS)
        if has_graphs:
            recorder = FakeGraphRecorder(kernels)
            assert runner.record_graphs(recorder, (1, 2, 4), lambda _: None, num_slots=NUM_SLOTS, adapter_rank=4)
        assert answer(runner, has_overlap=has_graphs) == expected


class Memory:
    """The calls of `torch.cuda` about memory, of which steps take none here."""

    num_bytes = 10**11
    total_memory = num_bytes

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        numbers = {
            "is_available": True,
            "device_count": 1,
            "mem_get_info": (self.num_bytes, self.num_bytes),
            "get_device_properties": self,
            **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), 0),
            **dict.fromkeys(("synchronize", "reset_peak_memory_stats", "empty_cache")),
        }
        for name, answer in numbers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


@pytest.mark.parametrize(
    "flags",
    [("--lora-memory-bytes", "auto"), ("--kv-cache-dtype", "fp8_e5m2", "--no-graphs", "--no-overlap")],
    ids=["with all", "in 8 bits"],
)
def test_a_shard_starts(flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start measures a step and what draws take, sizes the pool, and records and compares graphs."""
    make_tiny_llama(tmp_path, layers=2, seed=4)
    kernels: Any = RecordedKernels(PlainKernels())
    load_by(monkeypatch, kernels)
    recorder = FakeGraphRecorder(kernels)
    monkeypatch.setattr("textmill_shard.lifecycle.CudaGraphRecorder", lambda: recorder)
    monkeypatch.setattr(lifecycle, "_load_matchers", lambda *_: None)  # for which the folder needs a tokenizer
    Memory().install(monkeypatch)
    sizes = ("--num-slots", "4", "--max-kv-tokens", "512", "--max-step-tokens", "64")
    argv = ["serve", "--model-dir", str(tmp_path), "--uds-path", str(tmp_path / "shard"), *sizes, *flags]
    settings = load_settings(argv, {})
    assert isinstance(settings, ServeSettings)
    with valued_gpu(monkeypatch):
        device = pick_device(settings.device, number=0, num_shards=1)
        loaded, _ = lifecycle._start_steps(settings, device, ShardStatus())
    assert (device, loaded.facts.device, loaded.facts.num_blocks) == ("cuda:0", "cuda", 32)
    assert loaded.facts.kv_dtype == ("fp8_e5m2" if "fp8_e5m2" in flags else "bfloat16")
    assert bool(recorder.num_operations) == ("--no-graphs" not in flags)
