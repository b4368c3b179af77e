"""Plans the memory and records the graphs as a server does at its start, and runs requests in what the plan leaves."""

import time
from collections.abc import Callable, Iterator

import torch
from textmill_shard.engine.draw_trial import DrawTrial
from textmill_shard.model.decode_graphs import default_buckets
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_trial import GraphTrial
from textmill_shard.model.kv_pool import UNBOUNDED_TOKENS
from textmill_shard.model.memory import DEFAULT_MEMORY_FRACTIONS, DrawTrials, KvMemoryOptions
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.step_size import plan_fitting_step
from textmill_shard.sampling.row_scan import DeviceRowScanner

from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE
from bench.gpu.streams import WARM_UP_TOKENS, load_of

STEP_TOKENS, DRY_STEP_TOKENS = 4096, 8
GIB = 2**30


def check_start(setting: Setting, runner: ModelRunner) -> Iterator[Row]:
    """Yield the seconds and the memory of a start, and whether the requests behind it keep to the plan."""
    load = load_of(setting)
    num_slots = len(load.requests)
    runner.allocate_kv(1)
    _free(setting)
    buckets, recorder = default_buckets(num_slots), setting.graph_recorder()
    options = KvMemoryOptions(
        max_step_tokens=DRY_STEP_TOKENS if setting.is_dry else STEP_TOKENS,
        num_slots=num_slots,
        max_kv_tokens=load.num_blocks * BLOCK_SIZE if setting.is_dry else None,
        graphs=GraphTrial(recorder, num_rows=num_slots, num_graphs=len(buckets)),
    )
    began_s = time.perf_counter()
    memory, kept = plan_fitting_step(runner, options, is_fixed=False, draws=_draw_trials(runner, num_slots))
    numbers: dict[str, float | str] = {
        "s": time.perf_counter() - began_s,
        "largest step, ms": memory.step_s * 1e3,
        "weights, GiB": memory.weight_bytes / GIB,
        "step, GiB": memory.step_bytes / GIB,
        "keys and values, GiB": memory.kv_bytes / GIB,
        "tokens of them": float(memory.num_blocks * BLOCK_SIZE),
    }
    yield Row(f"memory for {num_slots} slots and steps of {kept.max_step_tokens} tokens", numbers)
    _free(setting)
    runner.allocate_kv(memory.num_blocks)
    began_s = time.perf_counter()
    is_recorded = runner.record_graphs(recorder, buckets, lambda share: None, num_slots=num_slots)
    yield Row(f"graphs of {len(buckets)} buckets", {"s": time.perf_counter() - began_s}, is_recorded)
    with load.loop(runner, has_overlap=True, max_step_tokens=kept.max_step_tokens) as loop:
        found = loop.run(load.shortened(len(load.requests[0].prompt), WARM_UP_TOKENS))
    yield _peak_row(setting, f"{num_slots} streams behind the start", sum(map(len, found.tokens)), memory.memory_bytes)


def _draw_trials(runner: ModelRunner, num_slots: int) -> DrawTrials:
    """Return what samples the largest step, as a shard does."""
    assert runner.device_scans is not None
    scanner = DeviceRowScanner(runner.device_scans)

    def make() -> Callable[[ForwardOutput], None]:
        return DrawTrial(
            num_slots=num_slots,
            vocab_size=runner.facts.vocab_size,
            longest_text=runner.facts.max_model_tokens or UNBOUNDED_TOKENS,
            device=runner.device,
            scanner=scanner,
            vocabulary=runner.vocabulary,
            project=runner.project if runner.vocabulary is None else runner.project_part,
        ).sample

    return make


def _free(setting: Setting) -> None:
    """Give back what the allocator keeps, and begin the peak of the memory that is taken anew."""
    setting.free()
    if not setting.is_dry:
        torch.cuda.reset_peak_memory_stats(setting.device)


def _peak_row(setting: Setting, name: str, num_tokens: int, memory_bytes: int) -> Row:
    """Return a row that is as demanded where the most memory that was taken is within the share of the plan."""
    if setting.is_dry:
        return Row(name, {"tokens": num_tokens})
    taken, planned = torch.cuda.max_memory_allocated(setting.device), DEFAULT_MEMORY_FRACTIONS["cuda"] * memory_bytes
    numbers: dict[str, float | str] = {"tokens": num_tokens, "taken, GiB": taken / GIB, "planned, GiB": planned / GIB}
    return Row(name, numbers, is_fine=taken <= planned)
