"""Two gloo ranks give the logits of one rank, and each of the two holds its part of the weights."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fakes.divided_models import FAMILIES, make_family
from tests.fakes.native_cases import native_kernels
from tests.fakes.rank_worker import (
    EIGHT_BITS,
    EIGHT_BITS_MODELS,
    HEAD_SCALES,
    IMAGES,
    KV_TYPE,
    LOOP,
    LOOP_MODELS,
    NARROW,
    NARROW_MODELS,
    NATIVE,
    NATIVE_MODELS,
    NUM_WRITTEN,
    QWEN3_VL,
    RANKS_TIMEOUT_S,
    SHARED,
    SHARED_MODELS,
    WHOLE_HEAD,
    ImageSight,
    LoopSight,
    NarrowSight,
    RankSight,
    look,
    look_at_image,
    run_loop,
    sight_file,
)
from tests.fakes.tiny_models import make_random_model, make_tiny_llama, make_tiny_model
from tests.zoo.dense import DENSE
from tests.zoo.image_drive import make_image_model
from tests.zoo.images import IMAGE_ZOO

QWEN = next(entry for entry in IMAGE_ZOO if entry.name == "Qwen3-VL")
LLAVA = next(entry for entry in IMAGE_ZOO if entry.name == "Llava")
REPOSITORY = Path(__file__).parents[4]
# Not `-m`: the findings must carry the module's name, not `__main__`. The collector of garbage rests during the
# imports, and the ranks share what these have made.
RANKS = """
import gc
gc.disable()
from tests.fakes.rank_worker import main
gc.freeze()
gc.enable()
main()
"""
LLAMAS = ("llama", "tied", "one-kv-head", "small-table", "tied-small-table", "qwen2", "qwen3", "biases")
# Of the largest logit; the ranks' sums are added in another order than one rank adds them.
TOLERANCE = 1e-5
EIGHT_BITS_TOLERANCE = 2e-3  # a sum in another order may round to the next number of 8 bits

# Six ranks go through twenty models: 10 s and more on a busy machine.
needs_ranks = pytest.mark.slow


def with_head_scales(folder: Path) -> Path:
    """Put scales into a checkpoint that cut the numbers of the second key/value head, and not those of the first."""
    file = folder / "model.safetensors"
    names = [f"model.layers.{layer}.self_attn.kv_scale" for layer in range(2)]
    save_file({**load_file(file), **{name: torch.tensor([0.01, 1e-5]) for name in names}}, file)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("divided")
    made = [
        make_tiny_llama(root / "llama", mlp=256, vocab=321),
        make_tiny_llama(root / "tied", vocab=700, tie=True),
        make_tiny_llama(root / "one-kv-head", kv_heads=1),
        make_tiny_llama(root / "small-table", vocab=258, mlp=4096),
        make_tiny_llama(root / "tied-small-table", vocab=258, mlp=4096, tie=True),
        make_tiny_model(root / "qwen2", "qwen2"),
        make_tiny_model(root / "qwen3", "qwen3"),
        make_tiny_model(root / "biases", "llama", attention_bias=True, mlp_bias=True),
    ]
    made.append(with_head_scales(make_tiny_llama(root / HEAD_SCALES)))
    made += [make_family(name, root / name) for name in FAMILIES]
    (root / QWEN3_VL).mkdir()
    made.append(make_image_model(QWEN, root / QWEN3_VL).folder)
    (root / IMAGES).mkdir()
    made.append(make_image_model(LLAVA, root / IMAGES).folder)
    return {folder.name: folder for folder in made}


@pytest.fixture(scope="module")
def sights(folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the findings of two ranks and of four."""
    scratch = tmp_path_factory.mktemp("sights")
    command = [sys.executable, "-c", RANKS]
    done = subprocess.run(
        [*command, str(scratch), *map(str, folders.values())],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=2 * RANKS_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return scratch


@pytest.fixture(scope="module")
def ranks(sights: Path) -> list[Mapping[str, RankSight]]:
    """The findings of each of two ranks, by model."""
    return [torch.load(sights / sight_file(rank, 2), weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def four_ranks(sights: Path) -> list[Mapping[str, RankSight]]:
    """The findings of each of four ranks, by model."""
    return [torch.load(sights / sight_file(rank, 4), weights_only=False) for rank in range(4)]


@needs_ranks
@pytest.mark.parametrize(
    "name", ["llama", "tied", "one-kv-head", "small-table", "tied-small-table", "qwen2", "qwen3", "biases"]
)
def test_two_ranks_give_the_logits_of_one(
    folders: Mapping[str, Path], ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    alone = look(folders[name], TensorParallel())
    scale = alone.logits.abs().max()
    for rank in ranks:
        assert rank[name].tokens == alone.tokens
        assert ((rank[name].logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
        assert ((rank[name].projected - alone.projected).abs().max() / scale).item() <= TOLERANCE
        assert rank[name].weight_bytes <= 0.6 * alone.weight_bytes
        assert {"ColumnParallelLinear", "RowParallelLinear"} <= rank[name].layer_kinds


@needs_ranks
@pytest.mark.parametrize("name", EIGHT_BITS_MODELS)
def test_ranks_with_keys_and_values_of_8_bits_give_the_logits_of_one(
    folders: Mapping[str, Path],
    ranks: list[Mapping[str, RankSight]],
    four_ranks: list[Mapping[str, RankSight]],
    name: str,
) -> None:
    """Each rank measures the scales of its own heads, or takes those of the checkpoint."""
    alone = look(folders[name], TensorParallel(), kv_type=KV_TYPE)
    scale = alone.logits.abs().max()
    for rank in (*ranks, *four_ranks):
        assert rank[name + EIGHT_BITS].tokens == alone.tokens
        assert ((rank[name + EIGHT_BITS].logits - alone.logits).abs().max() / scale).item() <= EIGHT_BITS_TOLERANCE
    assert ((rank[name].logits - alone.logits).abs().max() / scale).item() > EIGHT_BITS_TOLERANCE


@needs_ranks
@pytest.mark.parametrize("name", ["llama", "one-kv-head", "qwen3"])
def test_four_ranks_give_the_logits_of_one(
    folders: Mapping[str, Path], four_ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    alone = look(folders[name], TensorParallel())
    scale = alone.logits.abs().max()
    for rank in four_ranks:
        assert rank[name].tokens == alone.tokens
        assert ((rank[name].logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
        assert rank[name].weight_bytes <= 0.4 * alone.weight_bytes


@needs_ranks
@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_of_fused_layers_and_experts_give_the_logits_of_one(
    folders: Mapping[str, Path], ranks: list[Any], four_ranks: list[Any], name: str
) -> None:
    alone = look(folders[name], TensorParallel())
    scale = alone.logits.abs().max()
    sights = [rank[name] for rank in (*ranks, *four_ranks)]
    sights += [rank[name + SHARED] for rank in ranks if name + SHARED in rank]
    for sight in sights:
        assert sight.tokens == alone.tokens
        assert ((sight.logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
        assert ((sight.projected - alone.projected).abs().max() / scale).item() <= TOLERANCE
    for num_ranks, group in ((2, ranks), (4, four_ranks)):
        for rank in group:
            # Norms, routers, positions, latent vectors, and heads that several ranks hold stand whole.
            assert rank[name].weight_bytes <= (1 / num_ranks + 0.32) * alone.weight_bytes


@needs_ranks
def test_two_ranks_share_the_text_layers_of_qwen3_vl(folders: Mapping[str, Path], ranks: list[Any]) -> None:
    """Each rank has compared its first steps with an image with those of transformers' code at its start."""
    alone = look(folders[QWEN3_VL], TensorParallel())
    scale = alone.logits.abs().max()
    sights = [rank[QWEN3_VL] for rank in ranks]
    sights += [rank[QWEN3_VL + SHARED] for rank in ranks if QWEN3_VL + SHARED in rank]
    for sight in sights:
        assert {"ColumnParallelLinear", "RowParallelLinear"} <= sight.layer_kinds
        assert sight.tokens == alone.tokens
        assert ((sight.logits - alone.logits).abs().max() / scale).item() <= TOLERANCE


@needs_ranks
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_fused_layers_and_experts_reduces_once_per_attention_and_once_per_mlp(
    ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    for rank in ranks:
        is_table_cut = "VocabularyParallelEmbedding" in rank[name].layer_kinds
        is_head_cut = "VocabularyParallelHead" in rank[name].layer_kinds  # not where tied to a table that stands whole
        assert rank[name].exchanges["all_reduce"] == 2 * FAMILIES[name].num_layers + is_table_cut
        assert rank[name].exchanges["all_gather_into_tensor"] == is_head_cut
        if name + SHARED in rank:  # where there is a C compiler
            assert "PackedRowLinear" in rank[name + SHARED].layer_kinds
            num_shared = 2 * FAMILIES[name].num_layers + is_table_cut + is_head_cut
            assert rank[name + SHARED].num_shared_exchanges == num_shared


@needs_ranks
@pytest.mark.parametrize("name", ["llama", "small-table", "qwen3", "biases"])
def test_a_step_reduces_once_per_attention_and_once_per_mlp(ranks: list[Mapping[str, RankSight]], name: str) -> None:
    num_layers = 2
    for rank in ranks:
        is_table_cut = "VocabularyParallelEmbedding" in rank[name].layer_kinds
        assert rank[name].exchanges == {"all_reduce": 2 * num_layers + is_table_cut, "all_gather_into_tensor": 1}


@needs_ranks
@pytest.mark.parametrize("name", SHARED_MODELS)
def test_ranks_that_share_memory_give_the_logits_of_one_by_native_steps(
    folders: Mapping[str, Path], ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    native_kernels()
    alone = look(folders[name], TensorParallel())
    scale = alone.logits.abs().max()
    sights = [rank[name + SHARED] for rank in ranks]
    for sight in sights:
        assert sight.is_native
        assert sight.tokens == alone.tokens
        assert ((sight.logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
        assert ((sight.projected - alone.projected).abs().max() / scale).item() <= TOLERANCE
        assert not sight.exchanges, "a step of ranks that share memory uses no socket"
    assert torch.equal(sights[0].logits, sights[1].logits), "all ranks add up in one order"


@needs_ranks
@pytest.mark.parametrize("name", ["llama", "small-table", "qwen3", "biases"])
def test_a_native_step_reduces_once_per_attention_and_once_per_mlp(
    ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    native_kernels()
    num_layers = 2
    for rank in ranks:
        is_table_cut = "VocabularyParallelEmbedding" in rank[name + SHARED].layer_kinds
        assert rank[name + SHARED].num_shared_exchanges == 2 * num_layers + is_table_cut + 1  # the logits


def check_loop(sight: LoopSight | None, alone: LoopSight | None) -> None:
    """Compare what ranks tell of requests of every kind with what one rank tells."""
    assert sight is not None
    assert alone is not None
    assert {slot: len(tokens) for slot, tokens in alone.tokens.items()} == {slot: 24 - slot for slot in range(12)}
    assert sight.tokens == alone.tokens
    assert (sight.top_ids, sight.prompt_top_ids) == (alone.top_ids, alone.prompt_top_ids)
    for mine, one in (
        (sight.logprobs, alone.logprobs),
        (sight.top_logprobs, alone.top_logprobs),
        (sight.prompt_logprobs, alone.prompt_logprobs),
    ):
        assert mine.keys() == one.keys()
        assert one
        for slot, values in one.items():
            assert mine[slot] == pytest.approx(values, abs=1e-4)


@needs_ranks
@pytest.mark.parametrize("name", LOOP_MODELS)
def test_step_loops_that_share_memory_give_the_tokens_of_one_rank(
    folders: Mapping[str, Path], ranks: list[Any], four_ranks: list[Any], name: str
) -> None:
    native_kernels()
    alone = run_loop(folders[name], TensorParallel(), has_overlap=False)
    for sight in (ranks[0][name + LOOP + SHARED], four_ranks[0][name + LOOP + SHARED]):
        check_loop(sight, alone)


@needs_ranks
@pytest.mark.parametrize("name", LOOP_MODELS)
def test_ranks_whose_steps_overlap_give_the_tokens_of_one_rank_without(
    folders: Mapping[str, Path], ranks: list[Any], four_ranks: list[Any], name: str
) -> None:
    alone = run_loop(folders[name], TensorParallel(), has_overlap=False)
    for sight in (ranks[0][name + LOOP], four_ranks[0][name + LOOP]):
        check_loop(sight, alone)


@needs_ranks
def test_ranks_that_compute_all_logits_each_give_the_tokens_of_one(
    folders: Mapping[str, Path], ranks: list[Any]
) -> None:
    alone = run_loop(folders[WHOLE_HEAD], TensorParallel(), has_overlap=False)
    check_loop(ranks[0][WHOLE_HEAD + LOOP], alone)


@needs_ranks
@pytest.mark.parametrize("name", NATIVE_MODELS)
def test_two_ranks_with_packed_weights_give_the_logits_of_one_without(
    folders: Mapping[str, Path], ranks: list[Mapping[str, RankSight]], name: str
) -> None:
    native_kernels()
    alone = look(folders[name], TensorParallel())
    scale = alone.logits.abs().max()
    for rank in ranks:
        swapped = rank[name + NATIVE]
        assert swapped.num_packed == 2 * 7 + 1  # of each layer and the head
        assert swapped.tokens == alone.tokens
        assert ((swapped.logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
        assert ((swapped.projected - alone.projected).abs().max() / scale).item() <= TOLERANCE
        # Held once, in panels of 32 outputs; a tied head is held beside its look-up table.
        tied_bytes = folders[name].name == "tied" and 4 * 64 * 350
        assert swapped.weight_bytes <= 1.35 * rank[name].weight_bytes + tied_bytes


def expected_tokens(folder: Path) -> list[int]:
    """Return what transformers' full forward writes behind the prompt of `look_at_image`, token by token."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    ids = [5, 99, 31, *[model.config.image_token_id] * 16, 7, 250]
    for _ in range(NUM_WRITTEN):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[-NUM_WRITTEN:]


@needs_ranks
def test_one_rank_has_the_tower_and_both_compute_the_image(
    folders: Mapping[str, Path], ranks: list[Mapping[str, ImageSight]]
) -> None:
    check_image(folders[IMAGES], [rank[IMAGES] for rank in ranks])


@needs_ranks
def test_ranks_that_share_memory_compute_the_image(
    folders: Mapping[str, Path], ranks: list[Mapping[str, ImageSight]]
) -> None:
    native_kernels()
    check_image(folders[IMAGES], [rank[IMAGES + SHARED] for rank in ranks])


def check_image(folder: Path, sights: list[ImageSight]) -> None:
    alone = look_at_image(folder, TensorParallel())
    scale = alone.logits.abs().max()
    with_tower, without = sights
    assert with_tower.tokens == alone.tokens == expected_tokens(folder)
    assert without.tokens == []
    for sight in (with_tower, without):
        assert ((sight.logits - alone.logits).abs().max() / scale).item() <= TOLERANCE
    config = AutoConfig.for_model(LLAVA.model_type, **LLAVA.config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tower = (*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters())
    buffers = tuple(model.model.vision_tower.buffers())
    assert with_tower.weight_bytes - without.weight_bytes == sum(part.nbytes for part in (*tower, *buffers))


@needs_ranks
def test_key_value_heads_are_divided_or_held_several_times(ranks: list[Mapping[str, RankSight]]) -> None:
    assert [rank["llama"].num_local_kv_heads for rank in ranks] == [1, 1]
    assert [rank["one-kv-head"].num_local_kv_heads for rank in ranks] == [1, 1]


@needs_ranks
def test_small_embedding_stands_whole_on_every_rank(ranks: list[Mapping[str, RankSight]]) -> None:
    for rank in ranks:
        assert "VocabularyParallelEmbedding" in rank["llama"].layer_kinds
        assert "VocabularyParallelEmbedding" not in rank["small-table"].layer_kinds


@needs_ranks
def test_rank_with_least_memory_decides_the_number_of_blocks(ranks: list[Mapping[str, RankSight]]) -> None:
    # Rank 0 may have 20 blocks and rank 1 21; one of them is scratch.
    assert [rank["llama"].num_blocks for rank in ranks] == [19, 19]


def refusal(folder: Path, world_size: int) -> str:
    parallel = TensorParallel(rank=0, world_size=world_size)
    with pytest.raises(UnsupportedModelError) as refused:
        load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None, parallel)
    return str(refused.value)


def test_heads_that_do_not_divide_name_the_sizes_that_work(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "nine", hidden=36, heads=9, kv_heads=3)
    assert refusal(folder, 2) == (
        "9 attention heads with 3 key/value heads cannot be divided among 2 shards; --num-shard can be 1, 3, 9"
    )


def test_architecture_without_a_rule_is_refused(tmp_path: Path) -> None:
    config = next(entry.config for entry in DENSE if entry.name == "gpt_bigcode")
    make_random_model(AutoConfig.for_model("gpt_bigcode", **config), tmp_path)
    assert refusal(tmp_path, 2) == "models of type gpt_bigcode cannot be divided among 2 shards; use --num-shard 1"


@needs_ranks
@pytest.mark.parametrize("name", NARROW_MODELS)
def test_all_ranks_take_the_step_for_which_each_of_them_has_memory(ranks: list[Mapping[str, Any]], name: str) -> None:
    """The last rank runs out of memory in the middle of a step, whose exchanges must not leave the other waiting."""
    first, last = (rank[name + NARROW] for rank in ranks)
    assert isinstance(first, NarrowSight)
    assert first.max_step_tokens == last.max_step_tokens == 128
    assert first.num_blocks == last.num_blocks > 0
    # Each size is tried with exchanges at rest, and the size that fits then with exchanges.
    assert first.steps == last.steps == [512, 256, 128, 128]
