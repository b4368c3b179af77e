"""Experts whose rows torch's product of groups refuses are computed one by one, and others as before."""

from pathlib import Path

import pytest
import torch
from textmill_shard.layers.experts import find_expert_weights, loop_where_torch_refuses
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, PreTrainedModel

from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.tiny_models import make_random_model
from tests.zoo.drive import BLOCK_SIZE, ZooModel, run_zoo_model
from tests.zoo.entry import SMALL

SIZES = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1}


def mixtral(inner: int) -> MixtralConfig:
    return MixtralConfig(**{**SMALL, **SIZES, "intermediate_size": inner})


def made(config: MixtralConfig | GptOssConfig, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


@pytest.mark.parametrize(
    ("inner", "dtype", "how"),
    [
        (36, torch.float32, "grouped_mm"),  # 144 bytes
        (18, torch.float32, "eager"),
        (36, torch.bfloat16, "eager"),
        (40, torch.bfloat16, "grouped_mm"),
    ],
)
def test_rows_of_other_than_sixteen_bytes_are_multiplied_expert_by_expert(
    inner: int, dtype: torch.dtype, how: str
) -> None:
    model = made(mixtral(inner), dtype)
    loop_where_torch_refuses(model)
    assert model.get_experts_implementation()[""] == how
    with torch.inference_mode():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_the_widths_are_those_of_the_inputs_whatever_their_place() -> None:
    for config, has_inputs_first in (
        (mixtral(48), False),
        (GptOssConfig(**{**SMALL, **SIZES, "intermediate_size": 48, "head_dim": 16}), True),
    ):
        model = made(config, torch.float32)
        [weights] = [found for module in model.modules() if (found := find_expert_weights(module))]
        assert weights.has_inputs_first == has_inputs_first
        assert weights.widths == (config.hidden_size, 48)
        assert weights.num_experts == 4
    assert find_expert_weights(nn.Linear(3, 3)) is None


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_a_model_with_narrow_experts_has_the_logits_of_transformers(
    is_on_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, such a model was refused."""
    if is_on_gpu:
        load_by(monkeypatch, PlainKernels())
    reference = make_random_model(mixtral(18), tmp_path, experts_implementation="eager")
    runner = load_model(
        LoadOptions(model_dir=tmp_path, dtype="float32", block_size=BLOCK_SIZE), lambda phase, share: None
    )
    result = run_zoo_model(ZooModel(folder=tmp_path, reference=reference), runner)
    assert result.layout == "flat"
    assert result.difference <= 2e-5
