"""Models with an encoder: what is known of them at start, what is refused, what stays apart in a step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.zoo.drive import ZooModel, make_zoo_model, reference_logits
from tests.zoo.encoders import ENCODERS, SMALL_BART, SMALL_T5
from tests.zoo.entry import TOLERANCE, VOCAB_SIZE, ZooEntry

BLOCK_SIZE = 4
BLOCKS_PER_TEXT = 12
LONG = [(7 * index + 3) % 256 for index in range(40)]
SHORT = [(5 * index + 1) % 256 for index in range(7)]


def entry_of(name: str) -> ZooEntry:
    return next(entry for entry in ENCODERS if entry.name == name)


def load(folder: Path, parallel: TensorParallel | None = None) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE)
    return load_model(options, lambda phase, share: None, parallel)


def write_json(path: Path, **changes: Any) -> None:
    """Change fields; None takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


# ---- what is known at start


def test_the_decoder_begins_as_the_generation_config_says(tmp_path: Path) -> None:
    make_zoo_model(entry_of("bart"), tmp_path)
    write_json(tmp_path / "generation_config.json", decoder_start_token_id=7, forced_bos_token_id=9)
    assert load(tmp_path).facts.decoder_prompt_ids == (7, 9)
    (tmp_path / "generation_config.json").unlink()
    write_json(tmp_path / "config.json", decoder_start_token_id=5, forced_bos_token_id=6)
    assert load(tmp_path).facts.decoder_prompt_ids == (5, 6)


def test_positions_end_where_there_is_a_table_of_them(tmp_path: Path) -> None:
    make_zoo_model(entry_of("bart"), tmp_path / "bart")
    facts = load(tmp_path / "bart").facts
    assert (facts.max_encoder_tokens, facts.max_model_tokens) == (64, 64)
    make_zoo_model(entry_of("t5"), tmp_path / "t5")
    write_json(tmp_path / "t5" / "config.json", n_positions=512, max_position_embeddings=512)
    facts = load(tmp_path / "t5").facts
    assert (facts.max_encoder_tokens, facts.max_model_tokens) == (0, 0)
    assert not facts.can_project


# ---- what is refused


@pytest.mark.parametrize(
    ("model_type", "config", "words"),
    [
        (
            "bigbird_pegasus",
            {**SMALL_BART, "attention_type": "block_sparse"},
            "block-sparse attention",
        ),
        ("led", {**SMALL_BART, "attention_window": 8}, "logits differ from those computed alone"),
        ("switch_transformers", {**SMALL_T5, "num_experts": 4}, "cannot be served yet"),
        ("fsmt", {"langs": ["en", "de"], "src_vocab_size": VOCAB_SIZE, "tgt_vocab_size": VOCAB_SIZE}, "positions"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    model_type: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    small = {**SMALL_BART, **config} if "d_kv" not in config else config
    make_zoo_model(ZooEntry(model_type, small, "", layout="encoder_decoder"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        load(tmp_path)
    assert model_type in str(caught.value)


def test_a_decoder_whose_beginning_nobody_names_is_refused(tmp_path: Path) -> None:
    make_zoo_model(entry_of("t5"), tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    write_json(tmp_path / "config.json", decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(UnsupportedModelError, match="decoder_start_token_id"):
        load(tmp_path)
    write_json(tmp_path / "config.json", bos_token_id=BEGIN_ID)
    assert load(tmp_path).facts.decoder_prompt_ids == (BEGIN_ID,)


def test_encoders_are_not_divided_among_shards(tmp_path: Path) -> None:
    make_zoo_model(entry_of("t5"), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"read their input with an encoder .* --num-shard 1"):
        load(tmp_path, TensorParallel(rank=0, world_size=2))


# ---- steps


@pytest.fixture(params=["t5", "bart", "m2m_100"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ZooModel:
    torch.set_num_threads(1)
    return make_zoo_model(entry_of(request.param), tmp_path)


def batch_of(*parts: tuple[int, list[int], int, int, int], wants: tuple[bool, ...]) -> ForwardBatch:
    """Parts are (number of the text, its tokens, how many the encoder reads, from, to)."""
    rows = [
        SyntheticRow(
            ids_n=torch.tensor(tokens[start:stop]),
            blocks=range(text * BLOCKS_PER_TEXT, (text + 1) * BLOCKS_PER_TEXT),
            start=start,
            num_logits=int(is_wanted),
            num_encoder=num_read,
        )
        for (text, tokens, num_read, start, stop), is_wanted in zip(parts, wants, strict=True)
    ]
    return synthetic_batch(rows, block_size=BLOCK_SIZE)


def assert_close(logits_V: torch.Tensor, model: ZooModel, tokens: list[int], num_read: int) -> None:
    expected_TV = reference_logits(model.reference, tokens, num_read=num_read)
    assert float((logits_V - expected_TV[-1]).abs().max() / expected_TV.abs().max()) <= TOLERANCE


def test_what_earlier_owners_left_in_the_pool_does_not_leak(model: ZooModel) -> None:
    runner = load(model.folder)
    runner.allocate_kv(2 * BLOCKS_PER_TEXT)
    assert runner.kv_pool is not None
    for tensor in (*runner.kv_pool.keys, *runner.kv_pool.values):
        tensor.fill_(torch.nan)
    long, short = (0, LONG, 33), (1, SHORT, 3)
    runner.forward(batch_of((*short, 0, 6), (*long, 0, 34), wants=(True, True)))
    chunk = runner.forward(batch_of((*short, 6, 7), (*long, 34, 39), wants=(True, True)))
    assert_close(chunk.logits_NV[0], model, SHORT, 3)
    assert_close(chunk.logits_NV[1], model, LONG[:39], 33)
    singles = runner.forward(batch_of((1, [*SHORT, 9], 3, 7, 8), (*long, 39, 40), wants=(True, True)))
    assert_close(singles.logits_NV[0], model, [*SHORT, 9], 3)
    assert_close(singles.logits_NV[1], model, LONG, 33)


def test_one_token_for_an_encoder_is_not_one_to_decode(model: ZooModel) -> None:
    runner = load(model.folder)
    runner.allocate_kv(2 * BLOCKS_PER_TEXT)
    single = [17, 4, 9]
    runner.forward(batch_of((0, LONG, 33, 0, 39), wants=(True,)))
    beside = runner.forward(batch_of((0, LONG, 33, 39, 40), (1, single, 1, 0, 1), wants=(True, False)))
    assert_close(beside.logits_NV[0], model, LONG, 33)
    output = runner.forward(batch_of((1, single, 1, 1, 3), wants=(True,)))
    assert_close(output.logits_NV[0], model, single, 1)


def test_bfloat16_is_computed_in_bfloat16(tmp_path: Path) -> None:
    make_zoo_model(entry_of("flan-t5"), tmp_path)
    options = LoadOptions(model_dir=tmp_path, dtype="bfloat16", block_size=BLOCK_SIZE)
    runner = load_model(options, lambda phase, share: None)
    assert runner.facts.dtype == "bfloat16"
    runner.allocate_kv(4)
    assert runner.kv_pool is not None
    assert {tensor.dtype for tensor in runner.kv_pool.keys} == {torch.bfloat16}


def test_ends_of_text_are_those_of_the_config(tmp_path: Path) -> None:
    make_zoo_model(entry_of("bart"), tmp_path)
    assert load(tmp_path).facts.eos_token_ids == (END_ID,)
