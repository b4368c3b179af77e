"""`modules.json`: which layers a vector passes, against formulas over the hidden states of transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from textmill_shard.errors import ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.tasks.rows import HeadName, Row, SparseVector, VectorParams
from textmill_shard.tasks.task_loader import LoadedTask, TaskOptions, load_task
from textmill_shard.tasks.vector_modules import read_vector_modules
from transformers import AutoModel, AutoModelForMaskedLM

from tests.fakes.tiny_tasks import alone, make_task_model, random_rows

TYPES = "sentence_transformers.models."
LENGTHS = (9, 4, 4, 21)


def write_modules(folder: Path, *modules: tuple[str, dict[str, Any]], transformer: str = "Transformer") -> None:
    """Write `modules.json`, and a folder with a config for each module behind the transformer."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}{transformer}"}]
    for index, (kind, config) in enumerate(modules, 1):
        path = f"{index}_{kind}"
        listed.append({"idx": index, "name": str(index), "path": path, "type": TYPES + kind})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(listed))


def load(folder: Path, **options: Any) -> LoadedTask:
    return load_task(TaskOptions(folder, "sentence-similarity", **options), lambda phase, share: None)


def vectors(loaded: LoadedTask, rows: Sequence[Row], params: VectorParams | None = None) -> list[Any]:
    asked = [Row(row.token_ids, None, params or VectorParams()) for row in rows]
    return loaded.runner.run(HeadName.VECTORS, asked)


def means(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    return torch.stack([alone(model, row).last_hidden_state[0].mean(dim=0) for row in rows])


MEAN = ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})


def test_a_vector_passes_dense_norm_and_normalization(tmp_path: Path) -> None:
    model = make_task_model(tmp_path, "bert", AutoModel)
    dense = {"in_features": 32, "out_features": 12, "bias": True}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    write_modules(tmp_path, MEAN, ("Dense", dense), ("LayerNorm", {"dimension": 12}), ("Normalize", {}))
    random = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(12, 32, generator=random), torch.randn(12, generator=random)
    factor, shift = torch.randn(12, generator=random), torch.randn(12, generator=random)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")
    save_file({"norm.weight": factor, "norm.bias": shift}, tmp_path / "3_LayerNorm" / "model.safetensors")
    loaded = load(tmp_path)
    assert (loaded.vector_width, loaded.token_vector_width, loaded.is_normalized) == (12, 32, True)
    rows = random_rows(LENGTHS)
    projected = torch.tanh(means(model, rows) @ weight.T + bias)
    centred = projected - projected.mean(dim=1, keepdim=True)
    normed = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt() * factor + shift
    expected = normed / normed.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(np.stack(vectors(loaded, rows)), expected.numpy(), atol=1e-5)


def test_rows_ask_for_dimensions_and_lengths_of_their_own(tmp_path: Path) -> None:
    """The cut comes before the normalization."""
    model = make_task_model(tmp_path, "bert", AutoModel)
    write_modules(tmp_path, MEAN, ("Normalize", {}))
    loaded = load(tmp_path)
    rows = random_rows(LENGTHS)
    cut = means(model, rows)[:, :5]
    found = vectors(loaded, rows, VectorParams(dimensions=5, is_normalized=False))
    np.testing.assert_allclose(np.stack(found), cut.numpy(), atol=1e-5)
    found = vectors(loaded, rows, VectorParams(dimensions=5))
    np.testing.assert_allclose(np.stack(found), (cut / cut.norm(dim=1, keepdim=True)).numpy(), atol=1e-5)


def test_a_folder_without_modules_pools_by_mean_and_normalizes(tmp_path: Path) -> None:
    model = make_task_model(tmp_path, "roberta", AutoModel)
    loaded = load(tmp_path)
    rows = random_rows(LENGTHS)
    pooled = means(model, rows)
    np.testing.assert_allclose(
        np.stack(vectors(loaded, rows)), (pooled / pooled.norm(dim=1, keepdim=True)).numpy(), atol=1e-5
    )


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("last", -1)])
def test_the_flag_chooses_another_pooling(tmp_path: Path, pooling: str, place: int) -> None:
    model = make_task_model(tmp_path, "qwen3", AutoModel)
    write_modules(tmp_path, MEAN)
    rows = random_rows(LENGTHS)
    expected = torch.stack([alone(model, row).last_hidden_state[0, place] for row in rows])
    np.testing.assert_allclose(np.stack(vectors(load(tmp_path, pooling=pooling), rows)), expected.numpy(), atol=1e-5)


def test_without_pooling_there_are_token_vectors_only(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModel)
    loaded = load(tmp_path, pooling="none")
    assert (loaded.heads, loaded.vector_width, loaded.token_vector_width) == ((HeadName.TOKEN_VECTORS,), 0, 32)


def test_the_encoder_of_a_text_to_text_model_makes_vectors(tmp_path: Path) -> None:
    make_task_model(tmp_path, "t5", AutoModel, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    encoder = AutoModel.from_pretrained(tmp_path).get_encoder().eval()
    loaded = load(tmp_path, pooling="mean")
    rows = random_rows(LENGTHS)
    found = vectors(loaded, rows, VectorParams(is_normalized=False))
    np.testing.assert_allclose(np.stack(found), means(encoder, rows).numpy(), atol=1e-5)


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_a_sparse_folder_gives_weights_of_the_vocabulary(tmp_path: Path, strategy: str) -> None:
    model = make_task_model(tmp_path, "bert", AutoModelForMaskedLM)
    write_modules(tmp_path, ("SpladePooling", {"pooling_strategy": strategy}), transformer="MLMTransformer")
    loaded = load(tmp_path)
    assert loaded.heads == (HeadName.SPARSE_VECTORS,)
    row = random_rows((9,))[0]
    weights = torch.log1p(torch.relu(alone(model, row).logits[0]))
    expected = weights.amax(dim=0) if strategy == "max" else weights.sum(dim=0)
    (found,) = loaded.runner.run(HeadName.SPARSE_VECTORS, [row])
    assert isinstance(found, SparseVector)
    np.testing.assert_allclose(found.weights, expected[found.ids].numpy(), atol=1e-5)
    assert len(found.ids) == int((expected > 0).sum())


def test_the_transformer_may_stand_in_a_folder_of_its_own(tmp_path: Path) -> None:
    make_task_model(tmp_path / "0_Transformer", "bert", AutoModel)
    write_modules(tmp_path, MEAN)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    assert load(tmp_path).vector_width == 32


REFUSED: dict[str, tuple[tuple[tuple[str, dict[str, Any]], ...], type[ModelError], str]] = {
    "an unknown module": ((MEAN, ("LSTM", {})), UnsupportedModelError, "module LSTM"),
    "an unknown way": ((("Pooling", {"pooling_mode_odd": True}),), UnsupportedModelError, "pools by odd"),
    "no way": ((("Pooling", {}),), ModelFilesError, "no way of pooling"),
    "no pooling": ((), UnsupportedModelError, "no Pooling"),
    "layers behind the end": ((MEAN, ("Normalize", {}), MEAN), UnsupportedModelError, "Pooling behind Normalize"),
    "an unknown activation": (
        (MEAN, ("Dense", {"activation_function": "os.system"})),
        UnsupportedModelError,
        r"activation os\.system",
    ),
    "a width that is no number": ((MEAN, ("Dense", {"in_features": "many"})), ModelFilesError, "'many' as in_features"),
    "another sparse pooling": (
        (("SpladePooling", {"pooling_strategy": "mean"}),),
        UnsupportedModelError,
        "module SpladePooling",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_ends_the_start_by_name(tmp_path: Path, name: str) -> None:
    modules, kind, message = REFUSED[name]
    write_modules(tmp_path, *modules)
    with pytest.raises(kind, match=message):
        read_vector_modules(tmp_path, asked_pooling="auto", allow_pickle=False)


def test_a_module_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, MEAN)
    text = (tmp_path / "modules.json").read_text().replace("1_Pooling", "../elsewhere")
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelFilesError, match="no folder below"):
        read_vector_modules(tmp_path, asked_pooling="auto", allow_pickle=False)


def test_weights_of_another_width_are_refused_by_name(tmp_path: Path) -> None:
    dense = {"in_features": 32, "out_features": 12, "bias": False}
    write_modules(tmp_path, MEAN, ("Dense", dense))
    save_file({"linear.weight": torch.zeros(12, 30)}, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelFilesError, match=r"linear\.weight of shape \[12, 30\]"):
        read_vector_modules(tmp_path, asked_pooling="auto", allow_pickle=False)


def test_layers_that_do_not_fit_the_model_end_the_start(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModel)
    write_modules(tmp_path, MEAN, ("Dense", {"in_features": 30, "out_features": 12, "bias": False}))
    save_file({"linear.weight": torch.zeros(12, 30)}, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="do not fit the model"):
        load(tmp_path)
