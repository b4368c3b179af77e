"""Ids that the files of a model name: which of them are tokens, what becomes of the others, and what ends the start."""

import json
import logging
from pathlib import Path

import pytest
import torch
from textmill_shard.errors import ModelFilesError
from textmill_shard.grammar.matcher import load_matcher_factory
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.token_ids import find_end_ids
from textmill_shard.model.runner import ModelFacts
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.fakes.tiny_encoders import make_tiny_bart
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama


def change_json(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}))


def facts_of(folder: Path) -> ModelFacts:
    return load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None).facts


def test_end_ids_fall_back_from_generation_config_to_config_to_tokenizer(tmp_path: Path) -> None:
    def found() -> tuple[int, ...]:
        return find_end_ids(folder).within(VOCAB_SIZE)

    folder = make_tiny_llama(tmp_path / "llama", eos=[7, END_ID, 7])
    assert found() == (7, END_ID)
    change_json(folder / "generation_config.json", eos_token_id=9)
    assert found() == (9,)
    change_json(folder / "generation_config.json", eos_token_id=None)
    change_json(folder / "config.json", eos_token_id=11)
    assert found() == (11,)
    (folder / "generation_config.json").unlink()
    assert found() == (11,)
    change_json(folder / "config.json", eos_token_id=None)
    assert found() == (END_ID,)
    change_json(folder / "tokenizer_config.json", eos_token={"content": "<|begin|>"})
    assert found() == (BEGIN_ID,)
    (folder / "tokenizer_config.json").unlink()
    assert found() == ()


@pytest.mark.parametrize("eos", ["<|stop|>", "<|end|>", "a"])
@pytest.mark.parametrize("place", ["tokenizer_config.json", "added_tokens.json"])
def test_an_end_that_only_the_other_tokenizer_files_know_is_that_of_transformers(
    tmp_path: Path, place: str, eos: str
) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "generation_config.json", eos_token_id=None)
    change_json(folder / "config.json", eos_token_id=None)
    num_tokens = AutoTokenizer.from_pretrained(folder).backend_tokenizer.get_vocab_size()
    change_json(folder / "tokenizer_config.json", eos_token=eos)
    if place == "tokenizer_config.json":
        listed = {str(num_tokens): {"content": "<|stop|>", "special": True}}
        change_json(folder / place, added_tokens_decoder=listed)
    else:
        change_json(folder / place, **{"<|stop|>": num_tokens})
    assert find_end_ids(folder).named == (AutoTokenizer.from_pretrained(folder).eos_token_id,)


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ([-1, END_ID], (END_ID,)),
        ([END_ID, 50256], (END_ID,)),
        ([1, None], (1,)),
        (-1, ()),
        ([END_ID, VOCAB_SIZE - 1, VOCAB_SIZE], (END_ID, VOCAB_SIZE - 1)),
        ([2**70, 3], (3,)),
        ([], ()),
    ],
)
def test_end_ids_that_are_no_tokens_are_left_out_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, named: object, kept: tuple[int, ...]
) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "generation_config.json", eos_token_id=named)
    facts = facts_of(folder)
    assert facts.eos_token_ids == kept
    lines = [record for record in caplog.records if "no token of the model" in record.message]
    assert len(lines) == (1 if named != list(kept) else 0)
    assert all(record.levelno == logging.WARNING for record in lines)
    factory, _ = load_matcher_factory(folder, vocab_size=facts.vocab_size, eos_token_ids=facts.eos_token_ids)
    assert (factory is not None) == bool(kept)


@pytest.mark.parametrize("named", [[-1, END_ID], [END_ID, 50256]])
def test_transformers_ends_its_texts_at_the_ids_that_are_kept(tmp_path: Path, named: list[int]) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "generation_config.json", eos_token_id=named)
    (kept,) = find_end_ids(folder).within(VOCAB_SIZE)
    model = AutoModelForCausalLM.from_pretrained(folder)

    def length(eos: list[int], first: int) -> int:
        bias = {(token,): 1e4 for token in [first]}
        written = model.generate(
            torch.tensor([[1, 2]]), max_new_tokens=4, do_sample=False, eos_token_id=eos, sequence_bias=bias
        )
        return written.shape[1] - 2

    for first in (kept, VOCAB_SIZE - 1, 5):
        assert length(named, first) == length([kept], first) == (1 if first == kept else 4)


@pytest.mark.parametrize("named", ["2", 1.5, True, [1, "2"], {"id": 1}, [[1]]])
def test_end_ids_of_another_kind_end_the_start(tmp_path: Path, named: object) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "generation_config.json", eos_token_id=named)
    with pytest.raises(ModelFilesError, match=r"generation_config\.json has .* as eos_token_id: an id"):
        facts_of(folder)


@pytest.mark.parametrize("key", ["decoder_start_token_id", "forced_bos_token_id"])
@pytest.mark.parametrize("value", [-1, 50256, "2", [2]])
def test_what_a_decoder_is_fed_must_be_tokens(tmp_path: Path, key: str, value: object) -> None:
    folder = make_tiny_bart(tmp_path / "bart")
    change_json(folder / "generation_config.json", **{key: value})
    with pytest.raises(ModelFilesError, match=rf"generation_config\.json has .* as {key}, and the model knows"):
        facts_of(folder)


@pytest.mark.parametrize("value", [50256, -50256])
def test_padding_beyond_the_vocabulary_ends_the_start(tmp_path: Path, value: int) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "config.json", pad_token_id=value)
    with pytest.raises(ModelFilesError, match=r"config\.json has -?50256 as pad_token_id.*take pad_token_id out"):
        facts_of(folder)
    # transformers does not open such a folder either.
    with pytest.raises(AssertionError, match="within num_embeddings"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_padding_of_minus_one_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "config.json", pad_token_id=-1)
    assert facts_of(folder).vocab_size == VOCAB_SIZE
    AutoModelForCausalLM.from_pretrained(folder)


def test_suppressed_tokens_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "generation_config.json", suppress_tokens=[1, 50256], begin_suppress_tokens=None)
    facts_of(folder)
    (line,) = [record for record in caplog.records if "forbid" in record.message]
    assert line.__dict__["keys"] == ["suppress_tokens"]
