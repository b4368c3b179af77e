"""Times many streams through the step loop, and through transformers' own continuous batching on the same device."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from textmill_shard.model.runner import ModelRunner

from bench.gpu.loop import LoopRun, Request, StepLoop
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, fill_pool, make_model, sizes_of

LOAD, DRY_LOAD = (64, 896, 128), (2, 5, 3)  # requests, tokens of a prompt, new tokens
STEP_TOKENS = 8192  # of the largest step
TRACED_TOKENS = 12  # of each stream: the file of the trace grows with each launch
WARM_UP_TOKENS = 8
MOST_HOST_MS = 0.5  # aim: processor time of the step loop for a step
LEAST_SHARE = 0.95  # aim: of a step's time, the time of such a step alone on the device, so that the host is hidden
LEAST_RATIO = 3.0  # aim: tokens per second beside those of transformers


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that run side by side, and the blocks that they take."""

    requests: tuple[Request, ...]
    num_blocks: int

    def loop(self, runner: ModelRunner, *, has_overlap: bool, max_step_tokens: int = STEP_TOKENS) -> StepLoop:
        return StepLoop(
            runner,
            num_slots=len(self.requests),
            num_blocks=self.num_blocks,
            max_step_tokens=max_step_tokens,
            has_overlap=has_overlap,
        )

    def shortened(self, prompt_tokens: int, max_new: int) -> list[Request]:
        return [
            replace(request, prompt=request.prompt[:prompt_tokens], max_new=min(request.max_new, max_new))
            for request in self.requests
        ]


def load_of(setting: Setting) -> Load:
    vocabulary = sizes_of(setting).shape.vocabulary
    num_streams, prompt, max_new = DRY_LOAD if setting.is_dry else LOAD
    random = torch.Generator().manual_seed(4)
    requests = tuple(
        Request(torch.randint(vocabulary, (prompt,), generator=random).tolist(), max_new) for _ in range(num_streams)
    )
    return Load(requests, num_streams * -(-(prompt + max_new) // BLOCK_SIZE))


def time_streams(setting: Setting, runner: ModelRunner) -> Iterator[Row]:
    """Yield tokens per second without and with overlap and with graphs, and note the best rate in the setting."""
    load = load_of(setting)
    num_streams, prompt_tokens = len(load.requests), len(load.requests[0].prompt)
    fill_pool(runner, load.num_blocks)
    for name, has_graphs, has_overlap in (
        ("", False, False),
        (", overlap", False, True),
        (", overlap, graphs", True, True),
    ):
        is_as_named = not has_graphs or runner.record_graphs(
            setting.graph_recorder(), (num_streams,), lambda share: None, num_slots=num_streams
        )
        with load.loop(runner, has_overlap=has_overlap) as loop:
            loop.run(load.shortened(prompt_tokens, WARM_UP_TOKENS))
            found = loop.run(load.requests)
        rate = sum(map(len, found.tokens)) / found.seconds
        setting.rates["streams"] = max(rate, setting.rates.get("streams", 0.0))
        yield _row(setting, f"{num_streams} streams{name}", found, is_judged=has_graphs, is_as_named=is_as_named)


def time_transformers(setting: Setting) -> Iterator[Row]:
    """Yield the tokens per second of transformers for the requests of `time_streams`, beside the best rate there."""
    name = f"{len(load_of(setting).requests)} streams"
    if setting.is_dry and importlib.util.find_spec("psutil") is None:
        yield Row(name, {"not run": "because on a CPU transformers needs psutil"})
        return
    rate = _transformers_rate(setting, load_of(setting).requests)
    best = setting.rates.get("streams")
    yield Row(
        name,
        {
            "tokens/s": rate,
            **({} if best is None else {"ratio": best / rate}),
            "flash-attn": "no" if importlib.util.find_spec("flash_attn") is None else "yes",
        },
        aim=f"ratio >= {LEAST_RATIO:g}",
        meets_aim=None if best is None else setting.judge(best >= LEAST_RATIO * rate),
    )


def trace_steps(setting: Setting, runner: ModelRunner, file: Path) -> Iterator[Row]:
    """Write a trace of some steps with overlap and graphs."""
    load = load_of(setting)
    short = load.shortened(BLOCK_SIZE, TRACED_TOKENS)
    fill_pool(runner, load.num_blocks)
    runner.record_graphs(setting.graph_recorder(), (len(short),), lambda share: None, num_slots=len(short))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not setting.is_dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # The steps run in a thread of their own, which was there before.
    options = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with load.loop(runner, has_overlap=True) as loop:
        loop.run(short)
        with torch.profiler.profile(activities=activities, experimental_config=options) as profile:
            loop.run(short)
            setting.synchronize()
    profile.export_chrome_trace(str(file))
    yield Row("steps with overlap and graphs", {"file": file.name, "MB": file.stat().st_size / 1e6})


def _row(setting: Setting, name: str, found: LoopRun, *, is_judged: bool, is_as_named: bool) -> Row:
    """Return the rate, which counts the prefill too, and medians over the steps that decode alone."""
    whole_ms, device_ms, host_ms = (
        found.median_ms(seconds_of)
        for seconds_of in (lambda step: step.whole_s, lambda step: step.device_s, lambda step: step.host_s)
    )
    # The device's own time of a step begins before the host has launched the step, so that a host that is late shows
    # beside a step alone.
    alone_ms = setting.rates.get(f"decode of {len(found.tokens)}", device_ms)
    is_met = host_ms < MOST_HOST_MS and alone_ms >= LEAST_SHARE * whole_ms
    return Row(
        name,
        {
            "tokens/s": sum(map(len, found.tokens)) / found.seconds,
            "ms a step": whole_ms,
            "device ms a step": device_ms,
            "ms of a step alone": alone_ms,
            "host ms a step": host_ms,
        },
        is_fine=None if is_as_named else False,
        aim=f"host < {MOST_HOST_MS} ms, alone >= {LEAST_SHARE:.0%} of the step" if is_judged else "",
        meets_aim=setting.judge(is_met) if is_judged else None,
    )


def _transformers_rate(setting: Setting, requests: Sequence[Request]) -> float:
    """Return the tokens per second of `generate_batch`, after a run of other prompts that warms up.

    The time goes from the first request to the last token, so that neither the memory and graphs that transformers
    makes at the first run nor the end of its thread count.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = make_model(setting, sizes_of(setting))
    bounds = {"num_blocks": 8, "max_batch_tokens": 32} if setting.is_dry else {}
    batching = ContinuousBatchingConfig(**bounds)

    def run(prompts: list[list[int]], num_new: int) -> float:
        generation = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, persistent_manager=True
        )
        answers = list(found.values())
        num_tokens = sum(len(answer.generated_tokens) for answer in answers)
        if num_tokens != len(prompts) * num_new:
            errors = {answer.error for answer in answers if answer.error}
            raise RuntimeError(f"transformers gave {num_tokens} tokens, wanted {len(prompts) * num_new}: {errors}")
        began_s = min(answer.created_time for answer in answers)
        return float(num_tokens / (max(answer.lifespan[1] for answer in answers) - began_s))

    try:
        # In the other direction, because transformers finds the blocks of a prompt again.
        run([list(reversed(request.prompt)) for request in requests], min(WARM_UP_TOKENS, requests[0].max_new))
        return run([list(request.prompt) for request in requests], requests[0].max_new)
    finally:
        model.destroy_cached_continuous_batching_manager()
