"""Times many streams through the step loop, and through transformers' own continuous batching on the same device."""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from textmill_shard.model.runner import ModelRunner

from bench.gpu.loop import LoopRun, Request, StepLoop
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, make_model, sizes_of, zero_pool

LEAST_LEFT_S = 60.0  # transformers' warm-up takes part of this
STEP_TOKENS = 8192  # of the largest step
TRACED_TOKENS = 12  # of each stream: the file of the trace grows with each launch
WARM_UP_TOKENS = 8
MOST_HOST_MS = 0.5  # aim: processor time of the step loop for a step
LEAST_DEVICE_SHARE = 0.95  # aim: so much of a step's time the device computes, so that the host's time is hidden
LEAST_RATIO = 3.0  # aim: tokens per second beside those of transformers


def time_streams(setting: Setting, runner: ModelRunner, trace_file: Path) -> Iterator[Row]:
    """Yield tokens per second without and with overlap, with graphs, and of transformers; write a trace of steps."""
    sizes = sizes_of(setting)
    num_streams, prompt, max_new = (2, 5, 3) if setting.is_dry else (64, 896, 128)
    random = torch.Generator().manual_seed(4)
    requests = [
        Request(torch.randint(sizes.shape.vocabulary, (prompt,), generator=random).tolist(), max_new)
        for _ in range(num_streams)
    ]
    num_blocks = num_streams * -(-(prompt + max_new) // BLOCK_SIZE)
    zero_pool(runner, num_blocks)

    def loop_of(*, has_overlap: bool) -> StepLoop:
        return StepLoop(
            runner,
            num_slots=num_streams,
            num_blocks=num_blocks,
            max_step_tokens=STEP_TOKENS,
            has_overlap=has_overlap,
        )

    best = 0.0
    for name, has_graphs, has_overlap in (
        ("", False, False),
        (", overlap", False, True),
        (", overlap, graphs", True, True),
    ):
        is_as_named = not has_graphs or runner.record_graphs(
            setting.graph_recorder(), (num_streams,), lambda share: None, num_slots=num_streams
        )
        with loop_of(has_overlap=has_overlap) as loop:
            loop.run([replace(request, max_new=min(max_new, WARM_UP_TOKENS)) for request in requests])
            found = loop.run(requests)
        best = max(best, num_streams * max_new / found.seconds)
        yield _row(setting, f"{num_streams} streams{name}", found, is_judged=has_graphs, is_as_named=is_as_named)
    with loop_of(has_overlap=True) as loop:
        _trace(setting, loop, requests, trace_file)
    yield Row("trace of steps with overlap and graphs", {"file": trace_file.name})
    if setting.left_s < LEAST_LEFT_S and not setting.is_dry:
        yield Row("continuous batching of transformers", {"tokens/s": "no time was left"})
        return
    if setting.is_dry and importlib.util.find_spec("psutil") is None:
        yield Row("continuous batching of transformers", {"tokens/s": "left out: on a CPU transformers needs psutil"})
        return
    rate = _transformers_rate(setting, requests)
    yield Row(
        "continuous batching of transformers",
        {"tokens/s": rate, "ratio": best / rate},
        aim=f"ratio >= {LEAST_RATIO:g}",
        meets_aim=setting.judge(best >= LEAST_RATIO * rate),
    )


def _row(setting: Setting, name: str, found: LoopRun, *, is_judged: bool, is_as_named: bool) -> Row:
    """Return the rate, which counts the prefill too, and medians over the steps that decode alone."""
    whole_ms, device_ms, host_ms = (
        found.median_ms(seconds_of)
        for seconds_of in (lambda step: step.whole_s, lambda step: step.device_s, lambda step: step.host_s)
    )
    is_met = host_ms < MOST_HOST_MS and device_ms >= LEAST_DEVICE_SHARE * whole_ms
    return Row(
        name,
        {
            "tokens/s": sum(map(len, found.tokens)) / found.seconds,
            "ms a step": whole_ms,
            "device ms a step": device_ms,
            "host ms a step": host_ms,
        },
        is_fine=None if is_as_named else False,
        aim=f"host < {MOST_HOST_MS} ms, device >= {LEAST_DEVICE_SHARE:.0%} of the step" if is_judged else "",
        meets_aim=setting.judge(is_met) if is_judged else None,
    )


def _trace(setting: Setting, loop: StepLoop, requests: Sequence[Request], file: Path) -> None:
    short = [
        replace(request, prompt=request.prompt[:BLOCK_SIZE], max_new=min(request.max_new, TRACED_TOKENS))
        for request in requests
    ]
    loop.run(short)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not setting.is_dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # The steps run in a thread of their own, which was there before.
    options = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=activities, experimental_config=options) as profile:
        loop.run(short)
        setting.synchronize()
    profile.export_chrome_trace(str(file))


def _transformers_rate(setting: Setting, requests: Sequence[Request]) -> float:
    """Return the tokens per second of `generate_batch`, after a short run that warms up."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = make_model(setting, sizes_of(setting))
    max_new = requests[0].max_new
    bounds = {"num_blocks": 8, "max_batch_tokens": 32} if setting.is_dry else {}
    batching = ContinuousBatchingConfig(**bounds)
    inputs = [list(request.prompt) for request in requests]

    def run(num_new: int) -> float:
        generation = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        began_s = time.perf_counter()
        answers = model.generate_batch(inputs, generation_config=generation, continuous_batching_config=batching)
        seconds = time.perf_counter() - began_s
        num_tokens = sum(len(answer.generated_tokens) for answer in answers.values())
        if num_tokens != len(inputs) * num_new:
            raise RuntimeError(f"transformers gave {num_tokens} tokens, wanted {len(inputs) * num_new}")
        return num_tokens / seconds

    if not setting.is_dry:
        run(WARM_UP_TOKENS)
    return run(max_new)
