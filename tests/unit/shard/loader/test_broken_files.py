"""Folders and files that are broken: each ends the start with a sentence that names file and fault, and an exit code.

The sentence comes from this engine: an exception of a library alone says neither which file nor what to do.
"""

import json
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.__main__ import main
from textmill_shard.errors import BAD_FILES, UNSUPPORTED_MODEL, ModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model

from tests.fakes.gguf_files import make_model, write_gguf
from tests.fakes.tiny_models import make_tiny_llama

WEIGHTS, INDEX, CONFIG, GENERATION = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
)
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("whole") / "llama")


def config(**fields: Any) -> Break:
    return lambda folder: change(folder / CONFIG, **fields)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def content(name: str, data: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(data)


def without(name: str, then: Break = lambda folder: None) -> Break:
    return lambda folder: ((folder / name).unlink(), then(folder))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def apply(folder: Path) -> None:
        stored = load_file(folder / WEIGHTS)
        change(stored)
        save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def cut(share: float) -> Break:
    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])

    return apply


def index(**fields: Any) -> Break:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "part.safetensors")
        (folder / INDEX).write_text(json.dumps(fields))

    return apply


def as_folder(name: str) -> Break:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


UP = "model.layers.1.mlp.up_proj.weight"
FOLDERS: dict[str, tuple[Break, str]] = {
    "no config": (without(CONFIG), r"has no config\.json"),
    "config is empty": (content(CONFIG, b""), r"config\.json is not JSON"),
    "config is cut": (content(CONFIG, b'{"model_type": "lla'), r"config\.json is not JSON"),
    "config is a list": (content(CONFIG, b"[]"), r"config\.json does not hold an object"),
    "config is no text": (content(CONFIG, b"\xff\xfe\x00"), r"config\.json is not JSON"),
    "config is a folder": (as_folder(CONFIG), r"has no config\.json"),
    "config without a type": (config(model_type=None), r"config\.json is not understood"),
    "config of an unknown type": (config(model_type="llamma"), r"config\.json is not understood.*llamma"),
    "config of a type that is a number": (config(model_type=3), r"config\.json"),
    "config of a model that does not generate": (config(model_type="clip"), "do not generate text"),
    "width is a text": (config(hidden_size="64"), r"config\.json.*hidden_size"),
    "width is null": (config(hidden_size=None), r"config\.json"),
    "no layers": (config(num_hidden_layers=-1), r"config\.json has -1 as num_hidden_layers"),
    "no heads": (config(num_attention_heads=0), r"config\.json"),
    "heads do not divide": (config(num_attention_heads=3, num_key_value_heads=2), r"config\.json"),
    "a layer more": (config(num_hidden_layers=3), r"lacks.*model\.layers\.2\."),
    "vocabulary is smaller": (config(vocab_size=10, pad_token_id=None), r"has shape \[320, 64\] in the files"),
    "vocabulary is null": (config(vocab_size=None), r"config\.json"),
    "activation is unknown": (config(hidden_act="swoosh"), r"config\.json.*swoosh"),
    "positions are unknown": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}), r"spiral"),
    "positions are a text": (config(rope_parameters="linear"), r"config\.json"),
    "longest text is a text": (config(max_position_embeddings="many"), r"config\.json.*max_position_embeddings"),
    "head is odd": (config(head_dim=7), r"config\.json is not understood.*even rotary"),
    "dtype is unknown": (config(dtype="float99"), r"config\.json"),
    "own code is a text": (
        config(auto_map="house.HouseConfig"),
        r"config\.json has 'house\.HouseConfig' as auto_map, where an object",
    ),
    "own code is not trusted": (
        config(model_type="house", auto_map={"AutoConfig": "house.HouseConfig"}),
        r"brings modelling code of its own \(house\.HouseConfig\).*--trust-remote-code",
    ),
    "end is a text": (config(eos_token_id="</s>"), r"config\.json has a value of the wrong type.*eos_token_id"),
    "text config is a list": (config(text_config=[], eos_token_id=None), r"config\.json"),
    "padding is beyond": (config(pad_token_id=99999), r"99999 as pad_token_id.*take pad_token_id out"),
    "awq": (config(quantization_config={"quant_method": "awq"}), "quantised by awq cannot be served"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by gptq cannot be served"),
    "form is a text": (config(quantization_config="fp8"), r"config\.json has 'fp8' as quantization_config"),
    "weights are named outside": (config(transformers_weights="../x.safetensors"), "as transformers_weights"),
    "generation config is cut": (content(GENERATION, b"{"), r"generation_config\.json is not JSON"),
    "generation config is a list": (content(GENERATION, b"[1]"), r"generation_config\.json does not hold an object"),
    "weights are empty": (content(WEIGHTS, b""), r"model\.safetensors cannot be read as safetensors.*fetch it again"),
    "weights are a text": (content(WEIGHTS, b"version https://git-lfs"), r"model\.safetensors cannot be read"),
    "weights claim a huge header": (content(WEIGHTS, b"\xff" * 64), r"model\.safetensors cannot be read"),
    "weights are cut in the header": (cut(0.001), r"model\.safetensors cannot be read"),
    "weights are cut": (cut(0.9), r"model\.safetensors cannot be read.*an interrupted download"),
    "weights are a folder": (as_folder(WEIGHTS), "holds no weights"),
    "weights are a link to nothing": (
        without(WEIGHTS, lambda folder: (folder / WEIGHTS).symlink_to(folder / "absent")),
        r"model\.safetensors, a link to a file that is not there",
    ),
    "no weights": (without(WEIGHTS), r"holds no weights: model\.safetensors or"),
    "weights of an adapter": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.safetensors"),
        "weights of an adapter.*merge the adapter",
    ),
    "pickles": (without(WEIGHTS, content("pytorch_model.bin", pickle.dumps({}))), "refused.*--allow-pickle"),
    "gguf beside a config": (without(WEIGHTS, content("model.gguf", b"GGUF")), "textmill-shard convert --gguf"),
    "a tensor is missing": (tensors(lambda stored: stored.pop(UP)), rf"lacks.*{UP}"),
    "a tensor is of another shape": (
        tensors(lambda stored: stored.update({UP: torch.zeros(3, 3)})),
        rf"{UP} has shape \[3, 3\] in the files, config\.json asks for \[96, 64\]",
    ),
    "a tensor is one number": (tensors(lambda stored: stored.update({UP: torch.tensor(1.0)})), rf"{UP} has shape \[\]"),
    "a tensor is of whole numbers": (
        tensors(lambda stored: stored.update({UP: torch.zeros(96, 64, dtype=torch.int8)})),
        rf"holds {UP} as int8",
    ),
    "a scale stands beside": (
        tensors(lambda stored: stored.update({f"{UP}_scale_inv": torch.ones(1)})),
        rf"holds {UP}_scale_inv beside weights of the same layer",
    ),
    "weights are no numbers": (
        tensors(lambda stored: stored.update({UP: torch.full((96, 64), torch.nan)})),
        "logits for a plain text are no numbers",
    ),
    "index is cut": (lambda folder: (index()(folder), (folder / INDEX).write_text("{")), r"index\.json is not JSON"),
    "index without a map": (index(metadata={}), "has no weight_map"),
    "index with numbers": (index(weight_map={UP: 1}), "has no weight_map"),
    "index of other files": (
        index(weight_map={UP: "a.safetensors"}),
        r"files that are not there, first a\.safetensors",
    ),
    "index of other tensors": (index(weight_map={"odd": "part.safetensors"}), r"odd is in part\.safetensors, which"),
}


# What a file says may be meant, and nothing here can run the model: another exit code than that of a damaged file.
NOT_UNDERSTOOD = frozenset(
    {
        *("config without a type", "config of an unknown type", "config of a type that is a number"),
        *("config of a model that does not generate", "no heads", "heads do not divide", "activation is unknown"),
        *("positions are unknown", "head is odd", "dtype is unknown"),
        *("own code is not trusted", "awq", "gptq", "a tensor is of whole numbers"),
    }
)


@pytest.fixture
def handlers() -> Iterator[None]:
    """The command takes the signals of the whole process, which are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.usefixtures("handlers")
def test_a_broken_folder_says_what_is_wrong(
    whole: Path, tmp_path: Path, last_lines: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    apply, words = FOLDERS[name]
    folder = tmp_path / "llama"
    shutil.copytree(whole, folder)
    apply(folder)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with tempfile.TemporaryDirectory() as short, pytest.raises(SystemExit) as ended:
        main(["serve", "--model-dir", str(folder), "--uds-path", f"{short}/s", "--dtype", "float32"])
    (line,) = last_lines
    assert ended.value.code == (UNSUPPORTED_MODEL if name in NOT_UNDERSTOOD else BAD_FILES)
    assert re.search(rf"^rank 0 of 1 ends: \w+: .*(?:{words})", line), line


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        load_model(LoadOptions(model_dir=tmp_path / "absent"), lambda phase, share: None)


# ---- GGUF


def gguf(**how: Any) -> Break:
    model = make_model("llama")
    return lambda path: write_gguf(path, model, how.pop("architecture", "llama"), **how)


def damaged(at: int, data: bytes) -> Break:
    def apply(path: Path) -> None:
        gguf()(path)
        whole = bytearray(path.read_bytes())
        whole[at : at + len(data)] = data
        path.write_bytes(whole)

    return apply


def shortened(share: float) -> Break:
    def apply(path: Path) -> None:
        gguf()(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return apply


GGUF_FILES: dict[str, tuple[Break, str]] = {
    "absent": (lambda path: None, "is not a file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "is no GGUF file"),
    "magic alone": (lambda path: path.write_bytes(b"GGUF"), "broken header"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "is no GGUF file"),
    "cut in the header": (shortened(0.01), "broken header.*fetch it again"),
    "cut in the tensors": (shortened(0.8), "is cut short.*fetch it again"),
    "version 1": (damaged(4, b"\x01"), "version 1, versions 2 and 3"),
    "many values": (damaged(16, b"\xff\xff"), "broken header"),
    "name without end": (damaged(24, b"\xff" * 8), "broken header"),
    "no layers": (gguf(values={"block_count": 0}), "cannot be converted|no place for"),
    "more layers": (gguf(values={"block_count": 3}), r"lacks.*model\.layers\.2"),
    "no heads": (gguf(values={"attention.head_count": 0}), r"model\.gguf cannot be converted \(llama\)"),
    "heads are a text": (gguf(values={"attention.head_count": "four"}), "cannot be converted.*num_attention_heads"),
    "another width": (gguf(values={"embedding_length": 32}), r"model\.gguf holds \d+ numbers for"),
    "no width": (
        gguf(values={"embedding_length": None}),
        r"model\.gguf (lacks llama\.embedding_length|holds \d+ numbers for)",
    ),
    "end beyond": (gguf(tokenizer={"tokenizer.ggml.eos_token_id": 99999}), "99999 as tokenizer.ggml.eos_token_id"),
    "no tokens": (gguf(tokenizer={"tokenizer.ggml.tokens": None}), "has no tokenizer.ggml.tokens"),
    "fewer tokens": (
        gguf(tokenizer={"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}),
        "257 as",
    ),
    "no merges": (gguf(tokenizer={"tokenizer.ggml.merges": None}), "has no tokenizer.ggml.merges"),
    "unknown cuts": (gguf(tokenizer={"tokenizer.ggml.pre": "scissors"}), "in the way 'scissors'"),
    "a part alone": (gguf(tokenizer={"split.count": 2, "split.no": 0}), "one of 2 files of a model"),
    "experts": (gguf(values={"expert_count": 8}), r"lacks llama\.expert_used_count"),
    "a tensor more": (gguf(extra={"blk.0.odd.weight": numpy.zeros(4)}), "no place for.*blk.0.odd"),
    "a tensor of another shape": (
        gguf(change=lambda name, value: value[:3] if "1.ffn_up" in name else value),
        r"holds 192 numbers for model\.layers\.1\.mlp\.up_proj\.weight, and a model of the sizes.*6144",
    ),
}


@pytest.fixture
def last_lines() -> Iterator[list[str]]:
    """What the command logs as its end. The command sets up the logs of the whole process, which are put back."""
    logger = logging.getLogger("textmill_shard")
    before = (list(logger.handlers), logger.level, logger.propagate)
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno == logging.CRITICAL:
            lines.append(record.getMessage())
        return True

    speakers = (logger, logging.getLogger("textmill_shard.lifecycle"))
    for speaker in speakers:
        speaker.addFilter(keep)
    yield lines
    for speaker in speakers:
        speaker.removeFilter(keep)
    logger.handlers, logger.level, logger.propagate = before


@pytest.mark.parametrize("name", GGUF_FILES)
def test_a_broken_gguf_file_says_what_is_wrong(tmp_path: Path, last_lines: list[str], name: str) -> None:
    write, words = GGUF_FILES[name]
    path = tmp_path / "model.gguf"
    write(path)
    assert main(["convert", "--gguf", str(path), "--cache-dir", str(tmp_path / "cache")]) == BAD_FILES
    (line,) = last_lines
    assert re.search(words, line), line
    assert not (tmp_path / "cache").is_dir() or not list((tmp_path / "cache").iterdir())
