"""Experts that a checkpoint stores one by one are found, in their order, and read part by part."""

from pathlib import Path

import pytest
import torch
from textmill_shard.distributed.index_plan import Cut, IndexPlan, build_index_plan
from textmill_shard.distributed.index_ranges import IndexRange
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.expert_stacks import find_stacks
from textmill_shard.loader.linears import find_linears
from textmill_shard.loader.model_files import find_weight_files
from textmill_shard.loader.weight_reader import check_matching, match_names, match_stacks, read_weights
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.tiny_models import make_random_model
from tests.zoo.entry import SMALL

NUM_EXPERTS = 12  # so that names in the order of letters are in another order than numbers
MIXTRAL = {**SMALL, "num_hidden_layers": 1, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("mixtral")
    model = make_random_model(AutoConfig.for_model("mixtral", **MIXTRAL), folder)
    return folder, model


def empty_model() -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **MIXTRAL))
    return model


def test_experts_are_found_in_their_order(stored: tuple[Path, torch.nn.Module]) -> None:
    names = list(find_weight_files(stored[0]).file_of_tensor)
    stacks = find_stacks(empty_model(), names)
    gate, up = stacks["model.layers.0.mlp.experts.gate_up_proj"]
    (down,) = stacks["model.layers.0.mlp.experts.down_proj"]
    for part, name in ((gate, "w1"), (up, "w3"), (down, "w2")):
        assert [tensor.rpartition(".experts.")[2] for tensor in part] == [
            f"{expert}.{name}.weight" for expert in range(NUM_EXPERTS)
        ]


@pytest.mark.parametrize("is_cut", [False, True])
def test_experts_are_read_as_transformers_lays_them(stored: tuple[Path, torch.nn.Module], is_cut: bool) -> None:
    folder, expected = stored
    model, files = empty_model(), find_weight_files(folder)
    assert match_names(model, files).missing, "the checkpoint holds experts one by one"
    matching = match_stacks(model, files)
    check_matching(matching, folder=folder)
    experts = "model.layers.0.mlp.experts"
    cuts = {
        f"{experts}.gate_up_proj": Cut(1, (IndexRange(10, 40), IndexRange(106, 136))),
        f"{experts}.down_proj": Cut(2, (IndexRange(10, 40),)),
    }
    read_weights(
        model,
        files=files,
        matching=matching,
        plan=IndexPlan(cut_of_parameter=cuts if is_cut else {}),
        dtype=torch.float32,
        device=torch.device("cpu"),
        on_progress=lambda share: None,
    )
    gate_up = expected.get_parameter(f"{experts}.gate_up_proj").detach()
    down = expected.get_parameter(f"{experts}.down_proj").detach()
    if is_cut:
        gate_up, down = torch.cat([gate_up[:, 10:40], gate_up[:, 106:136]], dim=1), down[:, :, 10:40]
    assert torch.equal(model.get_parameter(f"{experts}.gate_up_proj"), gate_up)
    assert torch.equal(model.get_parameter(f"{experts}.down_proj"), down)


def test_a_checkpoint_that_lacks_an_expert_is_refused(stored: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    files = find_weight_files(stored[0])
    lost = next(name for name in files.file_of_tensor if ".experts.7.w3." in name)
    del files.file_of_tensor[lost]  # type: ignore[attr-defined]  # a dict, of this test's own
    model = empty_model()
    matching = match_stacks(model, files)
    with pytest.raises(ModelFilesError, match=r"experts\.gate_up_proj"):
        check_matching(matching, folder=stored[0])


def test_adapters_of_a_fused_layer_learn_all_runs_of_its_outputs() -> None:
    config = AutoConfig.for_model("phi3", **SMALL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    plan = build_index_plan(model, config, TensorParallel(1, 2))
    part = find_linears(model, plan)["model.layers.0.self_attn.qkv_proj"]
    # 4 query heads and 2 key/value heads, each 16 wide: the second half of the query, of the key and of the value.
    assert isinstance(part.outputs, torch.Tensor)
    assert part.outputs.tolist() == [*range(32, 64), *range(80, 96), *range(112, 128)]
    assert part.inputs == slice(0, 64)
