"""A read-only model folder without tokenizer.json is found, converted and served with the texts of transformers."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from textmill_launcher.child_name import ChildName
from textmill_launcher.model_files import find_model
from textmill_launcher.settings import load_settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_models import make_random_model
from tests.fakes.vocabulary_files import write_byte_pieces

LIMIT_S = 120


def make_gpt2(folder: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=380, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.6, eos_token_id=0
    )
    make_random_model(config, folder, auto_class=AutoModelForCausalLM)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    write_byte_pieces(folder, ("<|endoftext|>",))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


async def run_process(name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run the helper as the launcher does, and return the last line of its output."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()[-1]


def test_a_gpt2_of_vocab_json_and_merges_txt_writes_as_in_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "model"
    make_gpt2(folder)
    names = sorted(path.name for path in folder.iterdir())
    folder.chmod(0o500)
    try:
        flags = ["--model-id", str(folder), "--conversion-cache", str(tmp_path / "cache")]
        found = asyncio.run(find_model(load_settings(flags, {}), dict(os.environ), run_process))
        assert "making tokenizer.json from vocab.json and merges.txt" in caplog.text
        assert found.path.parent == tmp_path / "cache" / "tokenizers"
        body: dict[str, Any] = {"inputs": "The quick brown fox", "parameters": {"max_new_tokens": 24}}
        with RunningRouter(tmp_path, model=found.path, make_shard=RealShard) as router:
            answer = httpx.post(f"{router.url}/generate", json=body, timeout=60, trust_env=False)
            asked = httpx.post(f"{router.url}/tokenize", json=body, timeout=60, trust_env=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(body["inputs"], return_tensors="pt").input_ids
        reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        output = reference.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert answer.json() == {
            "generated_text": tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        }
        assert [token["id"] for token in asked.json()] == ids[0].tolist()
        assert sorted(path.name for path in folder.iterdir()) == names
    finally:
        folder.chmod(0o700)
