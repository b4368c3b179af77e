"""Tables become the tokens of transformers' tokenizer, and what a model cannot read or compute fails by itself."""

import json
import random
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.tasks.rows import CellAnswer, FailureCode, HeadName, RowFailure, TableRow
from textmill_shard.tasks.table_loader import LoadedTables, load_tables
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import TapasTokenizer

from tests.fakes.tiny_models import make_tiny_llama
from tests.fakes.tiny_tapas import make_tapas

WORDS = ("fox", "12", "the quick", "", "3.5 dogs", "1 May 2010", "n/a", "東京", "2nd", "7", "e" * 20, "-4")
TASK = "table-question-answering"


class NotingTokenizer(TapasTokenizer):  # type: ignore[misc]  # transformers has no types
    """transformers' tokenizer, which notes how many rows of the last table it found to fit."""

    num_fitting = -1

    def _get_truncated_table_rows(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_truncated_table_rows(*args, **kwargs)
        self.num_fitting = found[0]
        return found


def load(folder: Path) -> LoadedTables:
    return load_tables(TaskOptions(folder, TASK), lambda phase, share: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tapas(tmp_path_factory.mktemp("tapas"), seed=7)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedTables:
    return load(folder)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("trim", [-1, 2])
def test_tokens_are_those_of_the_tokenizer_of_transformers(tmp_path: Path, folder: Path, seed: int, trim: int) -> None:
    draw = random.Random(seed)
    width, height = draw.randint(1, 6), draw.choice((1, 3, 20, 60))
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).symlink_to(folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "cell_trim_length": trim}))
    columns = tuple(f"{draw.choice(WORDS)} {number}" for number in range(width))
    cells = tuple(draw.choice(WORDS) for _ in range(width * height))
    questions = tuple(" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 9))) + "x" for _ in "ab")
    [ready] = load(tmp_path).reader.read([TableRow(columns, cells, questions)])
    tokenizer = NotingTokenizer.from_pretrained(tmp_path)
    frame = pandas.DataFrame([cells[start : start + width] for start in range(0, len(cells), width)], columns=columns)
    num_tokens = 0
    for number, question in enumerate(questions):
        expected = tokenizer(frame, question, truncation="drop_rows_to_fit")
        num_tokens += len(expected.input_ids)
        if isinstance(ready, RowFailure):
            assert len(expected.input_ids) > 128, "refused without need"
            continue
        assert ready.ids[number].tolist() == expected.input_ids
        assert ready.types[number].tolist() == expected.token_type_ids
        num_kept = tokenizer.num_fitting  # a row of empty cells has no token
        assert ready.num_kept[number] == num_kept
        # Whole, the names and the rows that are read would have so many tokens.
        texts = [*columns, *cells[: num_kept * width]]
        num_whole = sum(len(tokenizer.tokenize(text)) for text in texts)
        num_read = sum(types[0] for types in expected.token_type_ids)
        assert ready.is_cut[number] == (num_read < num_whole)
    assert isinstance(ready, RowFailure) or ready.num_own_tokens == num_tokens


@pytest.mark.parametrize("cells", [("",), ("x", ""), ("", "x", ""), ("", ""), (" ", "n/a", "\u200b")])
def test_rows_of_empty_cells_are_read_whole(loaded: LoadedTables, cells: tuple[str, ...]) -> None:
    [ready] = loaded.reader.read([TableRow(("a",), cells, ("which?", "how many?"))])
    assert not isinstance(ready, RowFailure)
    assert list(ready.num_kept) == [len(cells)] * 2
    assert list(ready.is_cut) == [False] * 2


def test_a_table_above_the_limits_fails_alone(loaded: LoadedTables) -> None:
    wide = TableRow(tuple(map(str, range(300))), ("x",) * 300, ("a",))
    long = TableRow(("a",), ("1",), ("the fox " * 70,))
    good = TableRow(("a",), ("1",), ("which?",))
    rows = loaded.reader.read([wide, good, long])
    assert [isinstance(row, RowFailure) for row in rows] == [True, False, True]
    found = loaded.runner.run(HeadName.CELLS, rows)
    assert [each.code for each in found if isinstance(each, RowFailure)] == [FailureCode.BAD_MEDIA] * 2
    assert isinstance(found[1], CellAnswer)


def test_rows_above_those_that_the_model_counts_are_left_out(loaded: LoadedTables) -> None:
    row = TableRow(("a",), tuple(map(str, range(400))), ("which is 7?",))
    [ready] = loaded.reader.read([row])
    assert not isinstance(ready, RowFailure)
    assert int(ready.types[0][:, 4].max()) < 128, "the ranks are those of the rows that the model can count"
    assert isinstance(loaded.runner.run(HeadName.CELLS, [ready])[0], CellAnswer)


def test_a_result_that_is_no_number_fails_alone(tmp_path: Path) -> None:
    loaded = load(make_tapas(tmp_path / "model"))
    rows = loaded.reader.read([TableRow(("a",), ("1",), ("which?",))])
    assert isinstance(loaded.runner.run(HeadName.CELLS, rows)[0], CellAnswer)
    with torch.no_grad():
        loaded.runner._model.output_bias.fill_(float("nan"))
    [found] = loaded.runner.run(HeadName.CELLS, rows)
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_a_model_of_another_type_ends_the_start(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"type llama .* tables are read by TAPAS"):
        load(tmp_path)


def test_a_label_without_a_name_ends_the_start(tmp_path: Path) -> None:
    folder = make_tapas(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["aggregation_labels"] = {"0": "NONE", "1": "SUM", "3": "COUNT"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError, match="aggregation_labels lacks 2"):
        load(folder)


def test_a_folder_without_a_vocabulary_ends_the_start(tmp_path: Path) -> None:
    folder = make_tapas(tmp_path / "model")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load(folder)


def test_a_table_for_which_there_is_no_memory_fails_alone(
    loaded: LoadedTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HungryFrame(pandas.DataFrame):
        def __init__(self, data: Any, **options: Any) -> None:
            if isinstance(data, list) and data[0][0] == "large":
                raise MemoryError
            super().__init__(data, **options)

    monkeypatch.setattr(pandas, "DataFrame", HungryFrame)
    rows = [TableRow(("a",), (cell,), ("how many?",), is_sequential=False) for cell in ("1", "large", "3")]
    first, large, last = loaded.reader.read(rows)
    assert isinstance(large, RowFailure)
    assert (large.code, "no memory" in large.message) == (FailureCode.NO_MEMORY, True)
    assert not isinstance(first, RowFailure)
    assert not isinstance(last, RowFailure)
