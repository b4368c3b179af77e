"""Times many streams through the step loop, and through transformers' own continuous batching on the same device."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from textmill_shard.model.runner import ModelRunner

from bench.gpu.loop import LoopRun, Request, StepLoop
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, make_model, sizes_of, zero_pool

LEAST_LEFT_S = 120.0  # transformers' warm-up takes part of this


def time_streams(setting: Setting, runner: ModelRunner, trace_file: Path) -> Iterator[Row]:
    """Yield tokens per second without and with overlap, with graphs, and of transformers; write a trace of steps."""
    sizes = sizes_of(setting)
    num_streams, prompt, max_new = (2, 5, 3) if setting.is_dry else (64, 128, 128)
    random = torch.Generator().manual_seed(4)
    requests = [
        Request(torch.randint(sizes.shape.vocabulary, (prompt,), generator=random).tolist(), max_new)
        for _ in range(num_streams)
    ]
    num_blocks = num_streams * -(-(prompt + max_new) // BLOCK_SIZE)
    zero_pool(runner, num_blocks)

    def run(*, has_overlap: bool) -> LoopRun:
        with StepLoop(
            runner,
            num_slots=num_streams,
            num_blocks=num_blocks,
            max_step_tokens=max(num_streams * prompt, num_streams),
            has_overlap=has_overlap,
        ) as loop:
            loop.run(requests)
            return loop.run(requests)

    best = 0.0
    for name, has_graphs, has_overlap in (
        ("", False, False),
        (", overlap", False, True),
        (", overlap, graphs", True, True),
    ):
        if has_graphs:
            runner.record_graphs(setting.graph_recorder(), (num_streams,), lambda share: None)
        found = run(has_overlap=has_overlap)
        rate = num_streams * max_new / found.seconds
        best = max(best, rate)
        numbers: dict[str, float | str] = {
            "tokens/s": rate,
            "ms a step": 1e3 * found.seconds / found.num_steps,
            "device ms a step": 1e3 * found.device_s / found.num_steps,
        }
        yield Row(f"{num_streams} streams{name}", numbers)
    _trace(setting, run, trace_file)
    yield Row("trace of steps with overlap and graphs", {"file": trace_file.name})
    if setting.left_s < LEAST_LEFT_S and not setting.is_dry:
        yield Row("continuous batching of transformers", {"tokens/s": "no time was left"})
        return
    rate = _transformers_rate(setting, requests)
    yield Row("continuous batching of transformers", {"tokens/s": rate, "ratio": best / rate})


def _trace(setting: Setting, run: object, file: Path) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not setting.is_dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    assert callable(run)
    with torch.profiler.profile(activities=activities) as profile:
        run(has_overlap=True)
    profile.export_chrome_trace(str(file))


def _transformers_rate(setting: Setting, requests: list[Request]) -> float:
    """Return the tokens per second of `generate_batch`, after one run that warms up."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = make_model(setting, sizes_of(setting))
    max_new = requests[0].max_new
    generation = GenerationConfig(max_new_tokens=max_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    bounds = {"num_blocks": 8, "max_batch_tokens": 32} if setting.is_dry else {}
    batching = ContinuousBatchingConfig(**bounds)
    inputs = [list(request.prompt) for request in requests]
    seconds = 0.0
    for _ in range(1 if setting.is_dry else 2):
        began_s = time.perf_counter()
        answers = model.generate_batch(inputs, generation_config=generation, continuous_batching_config=batching)
        seconds = time.perf_counter() - began_s
        num_tokens = sum(len(answer.generated_tokens) for answer in answers.values())
        if num_tokens != len(inputs) * max_new:
            raise RuntimeError(f"transformers gave {num_tokens} tokens, wanted {len(inputs) * max_new}")
    return len(inputs) * max_new / seconds
