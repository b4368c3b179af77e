"""The plan of a model's memory, made from the settings, and how the plan is shown."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from textmill_launcher.devices import hides_all
from textmill_launcher.errors import SettingsError
from textmill_launcher.plan import machine
from textmill_launcher.plan.estimate import RankNeeds, estimate
from textmill_launcher.plan.fit import (
    DEFAULT_CONCURRENT_REQUESTS,
    DEFAULT_FRACTIONS,
    DEFAULT_SLOTS,
    DEFAULT_STEP_TOKENS,
    USUAL_CONTEXT,
    Fit,
    Wish,
    fit,
)
from textmill_launcher.plan.model_shape import ModelShape, read_shape
from textmill_launcher.plan.source import ModelFacts
from textmill_launcher.settings import Settings

DECODE_ROOM_TOKENS = 256  # of a step beside the prefill budget, as `child_arguments.py` has it


@dataclass(frozen=True, slots=True)
class Plan:
    """What one rank of a model takes, and how that fits."""

    model: str
    shape: ModelShape
    dtype: str
    device: str
    num_shard: int
    memory_bytes: int  # of the device, or of the machine that the ranks share
    memory_fraction: float
    start_needs: RankNeeds  # of a server that starts with these settings, which reduces nothing
    fit: Fit
    working_num_shards: tuple[int, ...]
    fitting_num_shards: tuple[int, ...]  # with which the whole wish fits
    num_nodes: int = 1  # between which the shards are divided
    num_replicas: int = 1  # which share the memory of a CPU
    is_demo: bool = False  # no --model-id was given
    limits_context: bool = False  # the context was asked for or reduced
    max_prefill_tokens: int | None = None  # of a step, where it was given
    given: tuple[str, ...] = ()  # further flags that were given, which the start needs too


def make_plan(
    settings: Settings,
    facts: ModelFacts,
    *,
    num_shard: int,
    concurrency: int = 1,
    device_memory: int | None = None,
    given: Sequence[str] = (),
) -> Plan:
    """Return the plan for the settings. `given` are words that the command line of the start takes as they are.

    Raises `CannotDivide` for a number of shards that the model cannot have, and `SettingsError` where the memory of the
    device is not known.
    """
    shape = read_shape(facts.config)
    shape.check_division(num_shard)
    device = _device(settings)
    dtype = _dtype(settings, shape, device)
    fraction = settings.memory_fraction or DEFAULT_FRACTIONS[device]
    memory_bytes = device_memory or _memory_bytes(device)
    step_tokens = settings.max_step_tokens or (
        DEFAULT_STEP_TOKENS
        if settings.max_batch_prefill_tokens is None
        else settings.max_batch_prefill_tokens + DECODE_ROOM_TOKENS
    )
    wish = Wish(
        context_tokens=settings.max_total_tokens or min(shape.max_model_tokens or USUAL_CONTEXT, USUAL_CONTEXT),
        num_requests=concurrency,
        max_step_tokens=step_tokens,
        num_slots=settings.num_slots or max(DEFAULT_SLOTS, min(concurrency, step_tokens)),
    )

    def needs_for(num_ranks: int) -> Callable[[Wish], RankNeeds]:
        return lambda wish: estimate(
            shape,
            facts.tensors,
            dtype=dtype,
            device=device,
            num_shard=num_ranks,
            num_slots=wish.num_slots,
            max_step_tokens=wish.max_step_tokens,
            media_cache_bytes=settings.media_cache_bytes,
            text_only=settings.text_only,
            kv_element_bytes=_kv_element_bytes(settings),
        )

    def fit_with(num_ranks: int) -> Fit:
        # Ranks on one CPU share its memory; each node has its part of the ranks, and each replica ranks of its own.
        num_sharing = -(-num_ranks // settings.num_nodes) * settings.num_replicas if device == "cpu" else 1
        budget_bytes = int(memory_bytes * fraction) // num_sharing
        return fit(
            wish,
            needs_for(num_ranks),
            budget_bytes=budget_bytes,
            max_model_tokens=shape.max_model_tokens,
            kv_cache_bytes=settings.kv_cache_bytes,
            adapter_bytes=_adapter_bytes(settings),
        )

    found = fit_with(num_shard)
    working = shape.working_num_shards()
    fitting = tuple(size for size in working if (other := fit_with(size)).fits and not other.reductions)
    return Plan(
        model=facts.name,
        shape=shape,
        dtype=dtype,
        device=device,
        num_shard=num_shard,
        memory_bytes=memory_bytes,
        memory_fraction=fraction,
        start_needs=needs_for(num_shard)(wish),
        fit=found,
        working_num_shards=working,
        fitting_num_shards=fitting,
        num_nodes=settings.num_nodes,
        num_replicas=settings.num_replicas,
        is_demo=settings.model_id is None,
        limits_context=settings.max_total_tokens is not None or found.wish.context_tokens < wish.context_tokens,
        max_prefill_tokens=settings.max_batch_prefill_tokens,
        given=tuple(given),
    )


def _adapter_bytes(settings: Settings) -> int | None:
    """Return the bytes that a shard sets aside for adapters, or None where the shard takes its share."""
    asks = bool(settings.lora_adapters) or settings.lora_runtime_updates
    return settings.lora_memory_bytes if asks else settings.lora_memory_bytes or 0


def _kv_element_bytes(settings: Settings) -> int | None:
    """Return the bytes of a number of keys and values, None for as many as those of the weights."""
    return None if settings.kv_cache_dtype in (None, "auto") else 1


def _device(settings: Settings) -> str:
    if settings.device in ("cpu", "cuda"):
        return settings.device
    return "cuda" if machine.gpu_bytes() and not hides_all(settings.visible_devices) else "cpu"


def _dtype(settings: Settings, shape: ModelShape, device: str) -> str:
    """Return the type that the shard takes for `--dtype`."""
    if settings.dtype not in (None, "auto"):
        return settings.dtype
    if device == "cpu":
        return "bfloat16" if machine.computes_in_bfloat16() else "float32"
    return shape.dtype if shape.dtype in ("bfloat16", "float16") else "bfloat16"


def _memory_bytes(device: str) -> int:
    if device == "cpu":
        return machine.ram_bytes()
    gpus = machine.gpu_bytes()
    if not gpus:
        raise SettingsError("no GPU answers here: give the memory of the GPU, e.g. --device-memory 80GiB")
    return min(gpus)


def suggested_flags(plan: Plan) -> list[str]:
    """Return a command line that starts the server as the plan has it."""
    wish, found = plan.fit.wish, plan.fit
    flags = ["launcher", *([] if plan.is_demo else ["--model-id", plan.model])]
    flags += ["--device", plan.device, "--dtype", plan.dtype, "--num-shard", str(plan.num_shard // plan.num_nodes)]
    if plan.num_nodes > 1:
        flags += ["--num-nodes", str(plan.num_nodes)]
    if found.fits and plan.limits_context:
        flags += ["--max-total-tokens", str(wish.context_tokens)]
    if wish.max_step_tokens != DEFAULT_STEP_TOKENS:
        flags += ["--max-step-tokens", str(wish.max_step_tokens)]
    if plan.max_prefill_tokens is not None:
        flags += ["--max-batch-prefill-tokens", str(min(plan.max_prefill_tokens, wish.max_step_tokens))]
    if wish.num_slots != DEFAULT_SLOTS:
        flags += ["--num-slots", str(wish.num_slots)]
    if wish.num_requests > DEFAULT_CONCURRENT_REQUESTS and "--max-concurrent-requests" not in plan.given:
        flags += ["--max-concurrent-requests", str(wish.num_requests)]
    return [*flags, *plan.given]


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as an object."""
    return {**asdict(plan), "suggested_flags": suggested_flags(plan)[1:]}


def as_text(plan: Plan) -> str:
    """Return the plan as a table."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    shape, found = plan.shape, plan.fit
    needs, wish = found.needs, found.wish
    shards = f"{plan.num_shard} shard" + ("s" if plan.num_shard > 1 else "")
    if plan.num_replicas > 1:
        shards += f" in each of {plan.num_replicas} replicas"
    yield f"{plan.model}: {shape.model_type}, {plan.dtype} on {plan.device}, {shards}"
    yield ""
    rough = " (roughly)" if needs.is_step_rough else ""
    yield _row("one shard has", found.budget_bytes, f"{plan.memory_fraction:g} of {size(plan.memory_bytes)}")
    yield _row("weights", needs.weight_bytes, _tower_remark(needs, plan.num_shard))
    yield _row("largest step", needs.step_bytes, f"{wish.max_step_tokens} tokens, {wish.num_slots} slots{rough}")
    if needs.media_bytes:
        yield _row("images", needs.media_bytes, "their cache; the tower at work comes on top")
    if shape.state_elements_per_slot is None:
        yield _row("states", None, "this type of model keeps states of a size that the plan does not know")
    elif needs.state_bytes:
        yield _row("states", needs.state_bytes, f"of {wish.num_slots} slots")
    if found.adapter_bytes:
        yield _row("adapters", found.adapter_bytes, "set aside for LoRA adapters (--lora-memory-bytes)")
    yield _row(
        "keys and values",
        max(0, found.kv_bytes),
        f"{found.kv_tokens} tokens of {needs.kv_bytes_per_token} bytes each",
    )
    yield ""
    for reduction in found.reductions:
        yield f"reduced: {reduction}"
    if not found.fits:
        more = [str(number) for number in plan.fitting_num_shards if number > plan.num_shard]
        yield "does not fit, whatever is reduced" + (f"; it fits with --num-shard {more[0]}" if more else "")
    else:
        yield "fits" if not found.reductions else "fits after these reductions"
    yield f"longest context: {found.longest_context} tokens"
    requests = "1 request" if found.num_at_once == 1 else f"{found.num_at_once} requests"
    yield f"at once: {requests} of {wish.context_tokens} tokens"
    yield f"--num-shard can be: {', '.join(map(str, plan.working_num_shards))}"
    if found.fits:
        yield ""
        yield f"start: {shlex.join(suggested_flags(plan))}"


def _tower_remark(needs: RankNeeds, num_shard: int) -> str:
    if not needs.tower_bytes:
        return ""
    where = " on the first shard" if num_shard > 1 else ""
    return f"{size(needs.tower_bytes)} of them encode images{where}"


def _row(name: str, num_bytes: int | None, remark: str = "") -> str:
    shown = "unknown" if num_bytes is None else size(num_bytes)
    return f"  {name:<18}{shown:>12}  {remark}".rstrip()


def size(num_bytes: int) -> str:
    """Return bytes in a unit that suits them: `1.5 GiB`."""
    amount, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
