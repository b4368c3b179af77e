"""The launcher serves a read-only model folder without tokenizer.json, with the texts of transformers."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.fakes.processes import launched
from tests.fakes.tiny_models import make_random_model
from tests.fakes.vocabulary_files import write_byte_pieces


@pytest.mark.slow  # a launcher with its processes takes 15 s
def test_a_gpt2_of_vocab_json_and_merges_txt_writes_as_in_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = AutoConfig.for_model(
        "gpt2", vocab_size=380, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.6, eos_token_id=0
    )
    make_random_model(config, folder, auto_class=AutoModelForCausalLM)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    write_byte_pieces(folder, ("<|endoftext|>",))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    names = sorted(path.name for path in folder.iterdir())
    folder.chmod(0o500)
    try:
        arguments = ["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
        arguments += ["--conversion-cache", str(tmp_path / "cache")]
        with launched(arguments, tmp_path) as started:
            url = started.wait_ready().base_url
            assert "making tokenizer.json from vocab.json and merges.txt" in started.log_text
            assert "tokenizer made" in started.log_text
            body = {"inputs": "The quick brown fox", "parameters": {"max_new_tokens": 24, "do_sample": False}}
            answer = httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False)
            asked = httpx.post(f"{url}/tokenize", json={"inputs": body["inputs"]}, timeout=60, trust_env=False)
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
