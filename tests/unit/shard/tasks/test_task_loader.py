"""A loaded task computes for rows of mixed lengths at once what transformers' own code computes for each row alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.options import POOLINGS, ROW_TASKS
from textmill_shard.tasks.row_forward import RowLayout
from textmill_shard.tasks.rows import (
    HeadName,
    MaskParams,
    Row,
    RowFailure,
    SpanParams,
    Spans,
    SparseVector,
    TokenLabelParams,
    VectorParams,
)
from textmill_shard.tasks.task_loader import LoadedTask, TaskOptions, load_task
from textmill_shard.tasks.task_table import HEADS_OF_TASK
from textmill_shard.tasks.vector_modules import POOLINGS as KNOWN_POOLINGS
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.tiny_tasks import PAD_ID, alone, make_task_model, random_rows

LENGTHS = (7, 30, 2, 12, 12, 5, 41)
FLAT, PADDED, ALONE = RowLayout.FLAT, RowLayout.PADDED, RowLayout.ALONE
LAYOUTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert"), FLAT),
    **dict.fromkeys(("ernie", "modernbert", "mobilebert", "nomic_bert", "eurobert", "qwen3", "llama"), FLAT),
    **dict.fromkeys(("mpnet", "deberta", "deberta-v2", "squeezebert", "xlnet", "bart"), PADDED),
    **dict.fromkeys(("convbert", "fnet"), ALONE),
}
TOLERANCE = 1e-5


def load(folder: Path, task: str, **options: Any) -> LoadedTask:
    return load_task(TaskOptions(model_dir=folder, task=task, **options), lambda phase, share: None)


def answers(loaded: LoadedTask, head: HeadName, rows: list[Row]) -> list[Any]:
    found = loaded.runner.run(head, rows)
    assert not [answer for answer in found if isinstance(answer, RowFailure)]
    return found


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_token_vectors_are_the_last_hidden_states(tmp_path: Path, model_type: str) -> None:
    model = make_task_model(tmp_path, model_type, AutoModel)
    loaded = load(tmp_path, "feature-extraction")
    assert loaded.runner.forward.layout is LAYOUTS[model_type]
    rows = random_rows(LENGTHS)
    for row, vectors in zip(rows, answers(loaded, HeadName.TOKEN_VECTORS, rows), strict=True):
        np.testing.assert_allclose(vectors, alone(model, row).last_hidden_state[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("model_type", [name for name in LAYOUTS if name not in ("qwen3", "llama")])
def test_labels_are_the_scores_of_the_class(tmp_path: Path, model_type: str) -> None:
    model = make_task_model(tmp_path, model_type, AutoModelForSequenceClassification, num_labels=3)
    loaded = load(tmp_path, "text-classification")
    rows = random_rows(LENGTHS)
    for row, scores in zip(rows, answers(loaded, HeadName.LABELS, rows), strict=True):
        np.testing.assert_allclose(scores, alone(model, row).logits[0].numpy(), atol=TOLERANCE)
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("model_type", [name for name in LAYOUTS if name != "bart"])
def test_token_labels_are_probabilities_of_the_wanted_tokens(tmp_path: Path, model_type: str) -> None:
    model = make_task_model(tmp_path, model_type, AutoModelForTokenClassification, num_labels=5)
    loaded = load(tmp_path, "token-classification")
    rows = [
        Row(row.token_ids, None, TokenLabelParams(np.arange(row.num_tokens) % 3 == 1)) for row in random_rows(LENGTHS)
    ]
    for row, found in zip(rows, answers(loaded, HeadName.TOKEN_LABELS, rows), strict=True):
        expected = alone(model, row).logits[0].softmax(dim=1)[1::3]
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE)


WITHOUT_MASKS = ("qwen3", "llama", "xlnet")


@pytest.mark.parametrize("model_type", [name for name in LAYOUTS if name not in WITHOUT_MASKS])
def test_masks_are_filled_with_the_best_ids_of_the_vocabulary(tmp_path: Path, model_type: str) -> None:
    model = make_task_model(tmp_path, model_type, AutoModelForMaskedLM)
    loaded = load(tmp_path, "fill-mask")
    targets = np.array([250, 17, 90])
    rows = [
        Row(
            row.token_ids,
            None,
            MaskParams(np.array([0, row.num_tokens - 1]), top_k=4, target_ids=np.zeros(0, np.int64)),
        )
        for row in random_rows(LENGTHS)
    ]
    rows += [Row(row.token_ids, None, MaskParams(np.array([1]), top_k=9, target_ids=targets)) for row in rows[:2]]
    for row, fillings in zip(rows, answers(loaded, HeadName.MASKS, rows), strict=True):
        assert isinstance(row.params, MaskParams)
        probabilities = alone(model, row).logits[0].softmax(dim=1)
        for position, filling in zip(row.params.positions, fillings, strict=True):
            of_mask = probabilities[position]
            if len(row.params.target_ids):
                of_mask = torch.zeros_like(of_mask).scatter(0, torch.tensor(targets), of_mask[targets])
            values, ids = of_mask.topk(min(row.params.top_k, len(row.params.target_ids) or 300))
            assert filling.ids.tolist() == ids.tolist()
            np.testing.assert_allclose(filling.probabilities, values.numpy(), atol=TOLERANCE)


def test_the_projection_onto_the_vocabulary_sees_masked_tokens_alone(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForMaskedLM)
    loaded = load(tmp_path, "fill-mask")
    seen: list[int] = []
    head = loaded.runner.forward.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, output: seen.append(output.shape[:-1].numel()))
    none = np.zeros(0, np.int64)
    rows = [
        Row(row.token_ids, None, MaskParams(np.array([1]), top_k=1, target_ids=none)) for row in random_rows((9, 5))
    ]
    answers(loaded, HeadName.MASKS, rows)
    assert seen == [2]


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert", "deberta-v2"])
def test_sparse_vectors_are_the_largest_logs_of_the_vocabulary(tmp_path: Path, model_type: str) -> None:
    model = make_task_model(tmp_path, model_type, AutoModelForMaskedLM)
    loaded = load(tmp_path, "fill-mask")
    rows = random_rows(LENGTHS)
    for row, found in zip(rows, answers(loaded, HeadName.SPARSE_VECTORS, rows), strict=True):
        weights = torch.log(1 + torch.relu(alone(model, row).logits[0])).amax(dim=0)
        assert isinstance(found, SparseVector)
        dense = np.zeros(len(weights), np.float32)
        dense[found.ids] = found.weights
        np.testing.assert_allclose(dense, weights.numpy(), atol=TOLERANCE)
        assert (found.weights > 0).all()


@pytest.mark.parametrize("model_type", [name for name in LAYOUTS if name not in ("nomic_bert", "eurobert", "xlnet")])
def test_spans_follow_from_the_scores_of_starts_and_ends(tmp_path: Path, model_type: str) -> None:
    """The expected spans are found by trying every pair of tokens of the context."""
    model = make_task_model(tmp_path, model_type, AutoModelForQuestionAnswering)
    loaded = load(tmp_path, "question-answering")
    rows = []
    for row in random_rows((8, 30, 12)):
        roles = np.full(row.num_tokens, 2, np.uint8)
        roles[:4] = [1, 0, 0, 0]
        rows.append(Row(row.token_ids, None, SpanParams(roles, max_span_tokens=3, max_spans=4)))
    for row, found in zip(rows, answers(loaded, HeadName.SPANS, rows), strict=True):
        output = alone(model, row)
        assert isinstance(row.params, SpanParams)
        mask = torch.tensor(row.params.roles_n == 0)
        start_p, end_p = (
            scores[0].masked_fill(mask, -10000.0).softmax(dim=0).tolist()
            for scores in (output.start_logits, output.end_logits)
        )
        pairs = [(start, end) for start in range(4, row.num_tokens) for end in range(start, row.num_tokens)]
        scored = sorted(((start_p[s] * end_p[e], s, e) for s, e in pairs if e - s < 3), key=lambda each: -each[0])[:4]
        assert isinstance(found, Spans)
        assert [(s, e) for _, s, e in scored] == list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
        np.testing.assert_allclose(found.scores, [score for score, _, _ in scored], atol=TOLERANCE)
        assert found.null_score == pytest.approx(start_p[0] * end_p[0], abs=TOLERANCE)


def test_token_types_reach_the_model(tmp_path: Path) -> None:
    model = make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load(tmp_path, "text-classification")
    assert loaded.num_token_types == 2
    plain = random_rows((6, 9))
    rows = [plain[0], Row(plain[1].token_ids, np.array([0, 0, 0, 0, 1, 1, 1, 1, 1]))]
    for row, scores in zip(rows, answers(loaded, HeadName.LABELS, rows), strict=True):
        types = torch.tensor(row.token_types if row.token_types is not None else [0] * row.num_tokens)
        expected = alone(model, row, token_type_ids=types.unsqueeze(0)).logits[0]
        np.testing.assert_allclose(scores, expected.numpy(), atol=TOLERANCE)


def test_native_layers_compute_what_plain_layers_compute(tmp_path: Path) -> None:
    native_kernels()  # skips the test where there is no compiler
    model = make_task_model(tmp_path, "bert", AutoModel)
    loaded = load(tmp_path, "feature-extraction", native_cache_dir=native_cache_folder())
    assert any(type(module).__name__ == "FusedLinear" for module in loaded.runner.forward.model.modules())
    rows = random_rows(LENGTHS)
    for row, vectors in zip(rows, answers(loaded, HeadName.TOKEN_VECTORS, rows), strict=True):
        np.testing.assert_allclose(vectors, alone(model, row).last_hidden_state[0].numpy(), atol=TOLERANCE)


def test_positions_behind_a_padding_row_are_not_counted(tmp_path: Path) -> None:
    """RoBERTa's table of positions begins with the padding row and the rows before it."""
    make_task_model(tmp_path, "roberta", AutoModel)
    assert load(tmp_path, "feature-extraction").max_row_tokens == 96 - PAD_ID - 1


def test_files_shorten_the_longest_row(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModel)
    assert load(tmp_path, "feature-extraction").max_row_tokens == 96
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    assert load(tmp_path, "feature-extraction").max_row_tokens == 40


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModel)
    loaded = load(tmp_path, "feature-extraction")
    loaded.runner.forward.model.get_input_embeddings().weight.data[99] = float("nan")
    rows = random_rows((6, 6, 6), seed=1)
    rows[1].token_ids[3] = 99
    for other in (rows[0], rows[2]):
        other.token_ids[other.token_ids == 99] = 98
    found = loaded.runner.run(HeadName.VECTORS, [Row(row.token_ids, None, VectorParams()) for row in rows])
    assert [isinstance(answer, RowFailure) for answer in found] == [False, True, False]


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=r"classifier\.weight"):
        load(tmp_path, "text-classification")


def test_a_tensor_beside_the_weights_of_a_layer_is_refused_by_name(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["classifier.scales"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=r"classifier\.scales"):
        load(tmp_path, "text-classification")


def test_pickled_weights_need_a_flag(tmp_path: Path) -> None:
    model = make_task_model(tmp_path, "bert", AutoModel)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="--allow-pickle"):
        load(tmp_path, "feature-extraction")
    assert load(tmp_path, "feature-extraction", allow_pickle=True).token_vector_width == 32


def test_a_model_without_the_head_of_the_task_is_refused(tmp_path: Path) -> None:
    make_task_model(tmp_path, "qwen3", AutoModel)
    with pytest.raises(UnsupportedModelError, match="AutoModelForMaskedLM"):
        load(tmp_path, "fill-mask")


def test_weights_that_are_no_numbers_end_the_start(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModel)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"].fill_(float("nan"))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match="NaN"):
        load(tmp_path, "feature-extraction")


def test_each_row_task_of_the_flag_has_heads() -> None:
    assert set(HEADS_OF_TASK) == set(ROW_TASKS)
    assert set(POOLINGS) == {"auto", "none", *KNOWN_POOLINGS}
