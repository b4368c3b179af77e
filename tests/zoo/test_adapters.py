"""Requests with adapters, through the real step loop in chunks and beside each other, compared with PEFT's forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from textmill_shard.adapters.reader import AdapterLimits, read_adapter
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.model.adapter import AdapterRefused, PreparedAdapter
from textmill_shard.model.runner import ModelRunner
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.fakes.lora import PeftReference, make_adapter, peft_as_it_is
from tests.fakes.native_cases import native_cache_folder
from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.step_harness import WAIT_S, Shard
from tests.zoo.drive import (
    BLOCK_SIZE,
    ENCODER_LENGTHS,
    NUM_BLOCKS,
    NUM_FIRST,
    NUM_NEW,
    RecordingRunner,
    ZooModel,
    budget_of,
    load_zoo_model,
    make_admit,
    make_zoo_model,
    prompts_of_zoo,
    zoo_facts,
)
from tests.zoo.entry import ZooEntry
from tests.zoo.table import ZOO

TOLERANCE = 1e-5  # of a logit, relative to the largest
LIMITS = AdapterLimits(max_rank=64, max_bytes=1 << 24)
ENTRIES = {entry.name: entry for entry in ZOO}
# Each row has a model, and the fields of each adapter's config.
SAVE = {"save_embedding_layers": False}  # PEFT writes a copy of an adapted head else
ALL = {"target_modules": "all-linear"}
CASES: dict[str, tuple[str, tuple[Mapping[str, Any], ...]]] = {
    "q": ("llama", ({"target_modules": ["q_proj"]}, {"target_modules": ["q_proj"], "r": 3})),
    "k": ("llama", ({"target_modules": ["k_proj"]}, {"target_modules": ["v_proj"]})),
    "o": ("llama", ({"target_modules": ["o_proj"]}, {"target_modules": ["down_proj"]})),
    "gate": ("llama", ({"target_modules": ["gate_proj"]}, {"target_modules": ["up_proj"]})),
    "head": ("llama", ({"target_modules": ["lm_head"]}, {"target_modules": ["lm_head", "q_proj"], "r": 16})),
    "all": ("llama", (ALL, {**ALL, "r": 17, "lora_alpha": 5})),
    "rslora": ("llama", ({**ALL, "use_rslora": True}, {**ALL, "r": 2, "use_rslora": True, "lora_alpha": 3})),
    "patterns": (
        "llama",
        (
            {**ALL, "rank_pattern": {"q_proj": 3, r"layers\.0\..*down_proj": 12}, "alpha_pattern": {"v_proj": 40}},
            {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {r"mlp\..*": 1}, "layers_to_transform": [1]},
        ),
    ),
    "biases": ("qwen2", (ALL, {**ALL, "r": 4})),
    "norms": ("qwen3", (ALL, {**ALL, "r": 4})),
    "fused": ("phi3", (ALL, {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 5})),
    "conv1d": ("gpt2", ({"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, {**ALL, "r": 3})),
    "interleaved": ("gpt_neox", (ALL, {"target_modules": ["query_key_value"], "r": 2})),
    "softcaps": ("gemma2", (ALL, {**ALL, "r": 4})),
    "states": ("mamba", ({"target_modules": ["x_proj", "in_proj"]}, {"target_modules": ["in_proj"], "r": 3})),
    "encoder": ("t5", ({"target_modules": ["q", "v", "wo"]}, {"target_modules": ["k", "o", "wi"], "r": 3})),
}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the requests got: their tokens, and the logits of each sampled row by slot."""

    tokens: Mapping[int, Sequence[int]]
    logits: Mapping[int, torch.Tensor]  # [NUM_NEW, V]


def run(runner: ModelRunner, folders: Sequence[Path], adapters: Sequence[int | None]) -> Answers:
    """Run the prompts of the zoo; request i has the adapter of the folder `adapters[i]`, None is the base model."""
    prompts = prompts_of_zoo()[: len(adapters)]
    recorder = RecordingRunner(runner)
    read_lengths = ENCODER_LENGTHS if runner.facts.decoder_prompt_ids else (0,) * len(prompts)

    def read(folder: Path) -> PreparedAdapter:
        return runner.adapters.prepare(read_adapter(folder, runner.targets, LIMITS))

    facts = replace(zoo_facts(runner), adapter_bytes=1 << 26)
    with Shard(facts=facts, runner=recorder, reader=AdapterReader(read, SoloGroup())) as shard:
        digests = [
            shard.engine.load_adapter(str(folder), expected_digest=b"").result(WAIT_S).digest for folder in folders
        ]
        admits, taken = [], 0
        for slot, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            num_blocks = -(-(len(prompt) + NUM_NEW) // BLOCK_SIZE)
            admit = make_admit(slot, prompt, np.arange(taken, taken + num_blocks), rope_border=runner.facts.rope_border)
            digest = b"" if adapter is None else digests[adapter]
            admits.append(replace(admit, num_encoder_tokens=read_lengths[slot], adapter_digest=digest))
            taken += num_blocks

        def admit_others(step: int) -> None:
            if step == 2:
                shard.send(admits=admits[NUM_FIRST:])

        recorder.before_step = admit_others
        shard.send(admits=admits[:NUM_FIRST], budget=budget_of(runner))
        tokens = shard.run_to_end(*range(len(prompts)))
        assert shard.error is None, shard.error
        for digest in dict.fromkeys(digests):
            shard.engine.unload_adapter(digest).result(WAIT_S)
    logits = {}
    for admit, prompt in zip(admits, prompts, strict=True):
        places = range(len(prompt) - 1, len(prompt) + NUM_NEW - 1)
        logits[admit.slot] = torch.stack([recorder.logits[int(admit.block_ids[0]), place] for place in places])
    return Answers(tokens, logits)


def loaded(model: ZooModel, *, is_native: bool) -> ModelRunner:
    runner = load_zoo_model(model, native_cache_dir=native_cache_folder() if is_native else None)
    runner.allocate_kv(NUM_BLOCKS)
    return runner


def made(name: str, tmp_path: Path) -> tuple[ZooEntry, ZooModel, list[Path]]:
    entry_name, configs = CASES[name]
    entry = ENTRIES[entry_name]
    model = make_zoo_model(entry, tmp_path / "model")
    auto_class = AutoModelForSeq2SeqLM if entry.layout == "encoder_decoder" else AutoModelForCausalLM
    folders = [
        make_adapter(
            model.folder, tmp_path / f"adapter-{number}", seed=number, auto_class=auto_class, save=SAVE, **config
        )
        for number, config in enumerate(configs, start=1)
    ]
    return entry, model, folders


@pytest.mark.parametrize("is_native", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_adapters_and_of_the_base_equal_peft(name: str, is_native: bool, tmp_path: Path) -> None:
    entry, model, folders = made(name, tmp_path)
    auto_class = AutoModelForSeq2SeqLM if entry.layout == "encoder_decoder" else AutoModelForCausalLM
    peft = PeftReference(model.folder, folders, auto_class=auto_class, attn_implementation=entry.attention)
    chosen = (0, None, 1, 0)
    # An encoder-decoder's logits sum up two towers.
    tolerance = entry.tolerance if entry.layout == "encoder_decoder" else TOLERANCE
    runner = loaded(model, is_native=is_native)
    answers = run(runner, folders, chosen)
    read_lengths = ENCODER_LENGTHS if runner.facts.decoder_prompt_ids else (0,) * len(chosen)
    for slot, (prompt, adapter, num_read) in enumerate(zip(prompts_of_zoo(), chosen, read_lengths, strict=True)):
        text = [*prompt, *answers.tokens[slot][:-1]]
        wanted_TV = peft.logits(text, adapter, num_read=num_read)[-NUM_NEW:]
        base_TV = peft.logits(text, None, num_read=num_read)[-NUM_NEW:]
        error = float((answers.logits[slot] - wanted_TV).abs().max() / wanted_TV.abs().max())
        assert error <= tolerance, (slot, adapter, error)
        if adapter is not None:  # the adapter says something
            assert float((base_TV - wanted_TV).abs().max() / wanted_TV.abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["all", "norms", "fused"])
def test_adapters_add_to_the_joined_products_of_a_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, folders = made(name, tmp_path)
    base = run(loaded(model, is_native=False), folders, (0, None, 1, 0))
    load_by(monkeypatch, PlainKernels())
    answers = run(loaded(model, is_native=False), folders, (0, None, 1, 0))
    for slot, wanted in base.logits.items():
        assert float((answers.logits[slot] - wanted).abs().max() / wanted.abs().max()) <= TOLERANCE


@pytest.mark.parametrize("is_native", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", ["all", "fused", "conv1d"])
def test_neighbours_change_no_bit(name: str, is_native: bool, tmp_path: Path) -> None:
    _, model, folders = made(name, tmp_path)
    runner = loaded(model, is_native=is_native)
    mixed = run(runner, folders, (0, None, 1, 0))
    base = run(runner, folders, (None, None, None, None))
    alone = run(runner, folders, (0, 0, 1, 0))
    assert torch.equal(mixed.logits[1], base.logits[1])
    for slot in (0, 2, 3):
        assert torch.equal(mixed.logits[slot], alone.logits[slot])
        assert not torch.equal(mixed.logits[slot], base.logits[slot])


def test_what_is_refused_can_be_merged_as_the_refusal_says(tmp_path: Path) -> None:
    config = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    model = make_zoo_model(ENTRIES["llama"], tmp_path / "model")
    adapter = make_adapter(model.folder, tmp_path / "adapter", save=SAVE, **config)
    tensors = load_file(adapter / "adapter_model.safetensors")
    head = tensors["base_model.model.lm_head.weight"]  # as if trained
    save_file(
        {**tensors, "base_model.model.lm_head.weight": head.flip(0).contiguous()}, adapter / "adapter_model.safetensors"
    )
    base = loaded(model, is_native=False)
    with pytest.raises(AdapterRefused, match=r"modules_to_save.*PeftModel\.merge_and_unload"):
        read_adapter(adapter, base.targets, LIMITS)
    peft = PeftReference(model.folder, [adapter])
    merged = replace(model, folder=merge(model.folder, adapter, tmp_path / "merged"))
    answers = run(loaded(merged, is_native=True), [], [None] * 4)
    for slot, prompt in enumerate(prompts_of_zoo()):
        wanted_TV = peft.logits([*prompt, *answers.tokens[slot][:-1]], 0)[-NUM_NEW:]
        assert float((answers.logits[slot] - wanted_TV).abs().max() / wanted_TV.abs().max()) <= TOLERANCE
        assert not torch.allclose(wanted_TV, peft.logits(list(prompt), None)[-1], rtol=0.1)


def merge(model_dir: Path, adapter: Path, folder: Path) -> Path:
    """Write the model with the adapter in its weights, as docs/adapters.md shows."""
    with peft_as_it_is():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), adapter)
        model.merge_and_unload().save_pretrained(folder)
    return folder
