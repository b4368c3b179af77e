"""Times what requests and flags add to a decode step: adapters, keys and values of 8 bits, and the first pass."""

# N rows, V vocabulary

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from textmill_shard.loader.kv_type import TRIAL_TOKENS, use_kv_type
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.score_changes import IdLists, RepetitionChange, ScoreChanges, Temperatures

from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, Sizes, batch_of, fill_pool, sizes_of, step_times
from bench.gpu_paper import ADAPTER_RANK, BYTES_PER_S, CANDIDATES, SCORE_BYTES

KV_TYPE = "fp8_e4m3fn"
LISTED_IDS = 1000  # of a repetition penalty


def time_extras(setting: Setting, runner: ModelRunner) -> Iterator[Row]:
    """Yield rows for the second largest of the decode steps, so that launches matter little and memory is left."""
    sizes = sizes_of(setting)
    num_rows = sizes.decode_rows[-2]
    batch = batch_of(setting, sizes, [(sizes.context - 1, 1)] * num_rows)
    fill_pool(runner, num_rows * -(-sizes.context // BLOCK_SIZE) + 1)
    name = f"decode of {num_rows} rows, {sizes.context} context"
    yield Row(name, step_times(setting, runner, sizes, batch))
    yield _with_adapters(setting, runner, sizes, batch, name)
    use_kv_type(KV_TYPE, runner, trial_tokens=16 if setting.is_dry else TRIAL_TOKENS)
    fill_pool(runner, num_rows * -(-sizes.context // BLOCK_SIZE) + 1)
    yield Row(f"{name}, keys and values in {KV_TYPE}", step_times(setting, runner, sizes, batch))
    runner.use_kv_type(runner.dtype, None)
    yield _first_pass(setting, sizes, num_rows)
    yield _candidates(setting, sizes, num_rows)


def _with_adapters(setting: Setting, runner: ModelRunner, sizes: Sizes, batch: ForwardBatch, name: str) -> Row:
    """Time a step whose rows share two adapters of all layers."""
    places = (1, 2)
    for place in places:
        modules = {
            path: LowRank(
                torch.randn(ADAPTER_RANK, part.in_features, dtype=runner.dtype) / part.in_features**0.5,
                torch.randn(part.out_features, ADAPTER_RANK, dtype=runner.dtype),
                scale=0.1,
            )
            for path, part in runner.targets.linears.items()
        }
        weights = AdapterWeights(digest=bytes([place]) * 16, modules=modules, max_rank=ADAPTER_RANK)
        runner.adapters.put(place, runner.adapters.prepare(weights))
    of_rows = tuple(places[row % 2] for row in range(len(batch.context_lens_R)))
    adapters_R = torch.tensor(of_rows, dtype=torch.int32, device=setting.device)
    adapted = replace(batch, adapters_R=adapters_R, adapters_on_host=of_rows)
    numbers = step_times(setting, runner, sizes, adapted, adapter_rank=ADAPTER_RANK)
    for place in places:
        runner.adapters.remove(place)
    return Row(f"{name}, adapters of rank {ADAPTER_RANK}", {**numbers, "layers": len(runner.targets.linears)})


def _first_pass(setting: Setting, sizes: Sizes, num_rows: int) -> Row:
    vocabulary, device = sizes.shape.vocabulary, setting.device
    logits_NV = torch.randn(num_rows, vocabulary, device=device)
    slots_N = torch.arange(num_rows, device=device)
    listed = min(LISTED_IDS, vocabulary)
    ids_SE = torch.arange(listed, device=device).expand(num_rows, -1).contiguous()
    numbers_S = torch.full((num_rows,), 1.2, device=device)
    changes = ScoreChanges(
        repetition=RepetitionChange(slots_N, IdLists(ids_SE, torch.full_like(slots_N, listed)), numbers_S),
        temperatures=Temperatures(slots_N, numbers_S),
    )
    floor_ms = 2 * SCORE_BYTES * num_rows * vocabulary / setting.rates.get("copy", BYTES_PER_S) * 1e3
    found_ms = setting.time_ms(lambda: setting.kernels.first_pass(logits_NV, changes), is_cold=True)
    return Row(
        f"first pass of {num_rows} rows, a repetition penalty of {listed} ids and a temperature",
        {"ms": found_ms, "floor ms": floor_ms, "ratio": found_ms / floor_ms},
    )


def _candidates(setting: Setting, sizes: Sizes, num_rows: int) -> Row:
    """Time the first pass of draws without a top-k, beside the selection from whole rows which the pass replaces."""
    vocabulary = sizes.shape.vocabulary
    wanted = min(CANDIDATES, vocabulary)
    logits_NV = torch.randn(num_rows, vocabulary, device=setting.device)
    ways: dict[str, Callable[[], object]] = {
        "ms": lambda: setting.kernels.first_pass(logits_NV, ScoreChanges(), wanted),
        "ms without candidates": lambda: setting.kernels.first_pass(logits_NV, ScoreChanges()),
        "ms of topk of whole rows": lambda: torch.topk(logits_NV, wanted, dim=-1),
    }
    return Row(
        f"first pass of {num_rows} rows with {wanted} candidates",
        {name: setting.time_ms(run, is_cold=True) for name, run in ways.items()},
    )
