"""`python -m bench.gpu_paper`: what each kernel of a step on a GPU moves and computes, on paper, and for how long.

The model is a llama of 8 billion weights in bfloat16. The time of a kernel is that of its bytes at the copy rate of the
memory, or that of its operations at the rate of matrix products, whichever is longer. No launch costs anything here,
and nothing is read twice, so that a measured time is judged against a floor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
from textmill_shard.triton_kernels.interface import TileMap
from textmill_shard.triton_kernels.tile_map import plan_tiles_plainly
from textmill_shard.triton_kernels.tiles import attention_tile, count_further, count_tiles

BYTES_PER_S = 4.3e12  # memory of an H200, as measured by copies
OPERATIONS_PER_S = 780e12  # dense products in bfloat16, as measured by large products
ITEM_BYTES, SCORE_BYTES = 2, 4
KEY_BYTES = 8  # of a candidate
ADAPTER_RANK = 16
CANDIDATES = 1024  # of a row that draws without a top-k
PART_IDS = 4096  # of a program of `scan_parts`
MULTIPROCESSORS = 132  # of an H200
RESIDENT_PROGRAMS = 3  # of attention over decodes in a multiprocessor, by their shared memory (docs/kernels.md)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model: Llama 3.1 8B."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    mlp: int = 14_336
    vocabulary: int = 128_256


@dataclass(frozen=True, slots=True)
class Step:
    """The sizes of a step. Each sequence has so many tokens in the step, the last of its context."""

    name: str
    sequences: int
    tokens_each: int
    context: int  # tokens, those of the step included

    @property
    def tokens(self) -> int:
        return self.sequences * self.tokens_each


@dataclass(frozen=True, slots=True)
class Cost:
    """One kernel in a step."""

    kernel: str
    launches: int
    num_bytes: int  # of all launches
    operations: int  # of all launches

    @property
    def expected_us(self) -> float:
        return 1e6 * max(self.num_bytes / BYTES_PER_S, self.operations / OPERATIONS_PER_S)


STEPS = (
    Step("1 decode, 1,024 context", sequences=1, tokens_each=1, context=1024),
    Step("64 decodes, 1,024 context", sequences=64, tokens_each=1, context=1024),
    Step("prefill of 4,096", sequences=1, tokens_each=4096, context=4096),
)


def costs(shape: Shape, step: Step) -> list[Cost]:
    """Return the kernels of a step in the order in which a layer launches them, then those around the layers."""
    tokens, layers = step.tokens, shape.layers
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # A token sees its own place and all places before it.
    seen = sum(step.context - step.tokens_each + place + 1 for place in range(step.tokens_each)) * step.sequences
    kv_places = step.sequences * step.context

    def product(name: str, inputs: int, outputs: int, *, rows: int = tokens, launches: int = layers) -> Cost:
        moved = (inputs * outputs + rows * (inputs + outputs)) * ITEM_BYTES
        return Cost(name, launches, launches * moved, launches * 2 * rows * inputs * outputs)

    def small(name: str, elements: int, *, operations_each: int, launches: int = layers) -> Cost:
        return Cost(name, launches, launches * elements * ITEM_BYTES, launches * elements * operations_each)

    sums = 2 * layers - 1
    return [
        small("sum and norm (`rms_norm` with a residual)", 4 * tokens * shape.hidden, operations_each=2, launches=sums),
        product("q, k and v", shape.hidden, query + 2 * key),
        small(
            "`write_kv`, with the turn",
            2 * tokens * (query + 2 * key) + 2 * tokens * shape.head_dim,
            operations_each=2,
        ),
        Cost(
            "`paged_attention`",
            layers,
            layers * (2 * kv_places * key + 2 * tokens * query) * ITEM_BYTES,
            layers * 4 * seen * query,
        ),
        product("out", query, shape.hidden),
        product("gate and up", shape.hidden, 2 * shape.mlp),
        small("`gate_up`", 3 * tokens * shape.mlp, operations_each=2),
        product("down", shape.mlp, shape.hidden),
        product("head", shape.hidden, shape.vocabulary, rows=step.sequences, launches=1),
        Cost(
            "scores to fp32, and `scan_parts`",
            2,
            step.sequences * shape.vocabulary * (ITEM_BYTES + 2 * SCORE_BYTES),
            step.sequences * shape.vocabulary * 4,
        ),
    ]


def extra_costs(shape: Shape, step: Step) -> list[Cost]:
    """Return kernels that take the place of others, or come on top, where requests or flags ask for them."""
    attention = next(cost for cost in costs(shape, step) if cost.kernel == "`paged_attention`")
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    saved = shape.layers * 2 * step.sequences * step.context * key * (ITEM_BYTES - 1)
    # Inputs and outputs of the seven layers of a layer. Each sequence reads the matrices of its own adapter.
    widths = [(shape.hidden, query), *[(shape.hidden, key)] * 2, (query, shape.hidden)]
    widths += [*[(shape.hidden, shape.mlp)] * 2, (shape.mlp, shape.hidden)]

    def low_rank(kernel: str, read: list[int], written: int) -> Cost:
        matrices = sum(width * ADAPTER_RANK for width in read) * step.sequences
        rows = (sum(read) * (1 + written) + len(read) * ADAPTER_RANK) * step.tokens
        return Cost(
            f"`{kernel}` of rank {ADAPTER_RANK}, an adapter for each row",
            shape.layers * len(read),
            shape.layers * (matrices + rows) * ITEM_BYTES,
            shape.layers * 2 * ADAPTER_RANK * sum(read) * step.tokens,
        )

    parts = _num_parts(shape, step)
    part_bytes = 0 if parts == 1 else step.tokens * shape.heads * parts * (shape.head_dim + 2) * SCORE_BYTES
    scores = step.sequences * shape.vocabulary
    keys = step.sequences * -(-shape.vocabulary // PART_IDS) * CANDIDATES
    return [
        Cost(
            "`paged_attention` over fp8 keys and values",
            attention.launches,
            attention.num_bytes - saved,
            attention.operations,
        ),
        # Each part has its values, its highest score and its sum, which are written and read.
        Cost(
            "`merge_splits`, where contexts are cut because rows are few",
            shape.layers,
            shape.layers * 2 * part_bytes,
            shape.layers * part_bytes // SCORE_BYTES * 2,
        ),
        low_rank("shrink", [inputs for inputs, _ in widths], written=0),
        low_rank("expand", [outputs for _, outputs in widths], written=1),
        Cost("`scan_parts` with penalties, bias and a mask", 1, scores * (2 * SCORE_BYTES + 1), scores * 8),
        Cost(
            "`scan_parts` with candidates, and their selection",
            2,
            scores * SCORE_BYTES + 2 * keys * KEY_BYTES,
            scores * (4 + 2 * 32),  # a comparison and a sum for each bit of a score
        ),
    ]


def _num_parts(shape: Shape, step: Step) -> int:
    """Return into how many parts attention cuts the context of each tile of the step."""
    plan = _plan(shape, [(step.tokens_each, step.context)] * step.sequences)
    return max(_parts_of_tiles(plan))


def _plan(shape: Shape, lens: Sequence[tuple[int, int]]) -> TileMap:
    """Return the tiles of sequences of so many tokens in the step and in their context."""
    group = shape.heads // shape.kv_heads
    starts = torch.tensor([0, *accumulate(count for count, _ in lens)], dtype=torch.int32)
    num_tokens = int(starts[-1])
    tile = attention_tile(
        itemsize=ITEM_BYTES,
        group=group,
        key_dim=shape.head_dim,
        value_dim=shape.head_dim,
        max_query_len=max(count for count, _ in lens),
    )
    num_tiles = count_tiles(tile, group=group, num_tokens=num_tokens, num_sequences=len(lens))
    num_further = count_further(num_tiles=num_tiles, num_kv_heads=shape.kv_heads, num_multiprocessors=MULTIPROCESSORS)
    context_lens_R = torch.tensor([length for _, length in lens], dtype=torch.int32)
    return plan_tiles_plainly(starts, context_lens_R, tile, group=group, num_tokens=num_tokens, num_further=num_further)


def _parts_of_tiles(plan: TileMap) -> list[int]:
    parts: list[int] = (plan.parts_before.diff() + 1).tolist()
    return parts


# Contexts of decodes, by the name of the step.
DECODES: Mapping[str, Sequence[int]] = {
    **{
        f"{rows} of {context:,}": [context] * rows
        for rows, context in product((1, 8, 64, 256), (1_000, 5_000, 100_000))
        if rows * context <= 64 * 100_000
    },
    "63 of 1,000 and 1 of 100,000": [*[1_000] * 63, 100_000],
}


def attention_lines() -> Iterator[str]:
    """Return the table of decodes: programs with work, their reads, and the floor of one layer's attention."""
    shape = Shape()
    yield "| decodes | parts of the longest | programs of a multiprocessor | KiB under way | MB | us |"
    yield "|---|---|---|---|---|---|"
    for name, lens in DECODES.items():
        plan = _plan(shape, [(1, length) for length in lens])
        programs = (len(lens) + int(plan.parts_before[-1])) * shape.kv_heads / MULTIPROCESSORS
        place_bytes = 2 * shape.head_dim * ITEM_BYTES
        under_way = min(programs, RESIDENT_PROGRAMS) * (plan.tile.num_stages - 1) // 2 * plan.tile.places * place_bytes
        num_bytes = sum(lens) * shape.kv_heads * place_bytes
        most = max(_parts_of_tiles(plan))
        floor_us = 1e6 * num_bytes / BYTES_PER_S
        cells = f"{programs:.1f} | {under_way / 1024:.0f} | {num_bytes / 1e6:,.1f} | {floor_us:,.1f}"
        yield f"| {name} | {most} | {cells} |"


def lines() -> Iterator[str]:
    """Return the table for docs/benchmarks.md: bytes, operations and microseconds of all launches of a step."""
    shape = Shape()
    by_step = [costs(shape, step) for step in STEPS]
    yield f"| Kernel | launches | {' | '.join(f'{step.name}: MB, GFLOP, us' for step in STEPS)} |"
    yield "|---|---|" + "---|" * len(STEPS)
    for kernels in zip(*by_step, strict=True):
        cells = " | ".join(_cell(cost.num_bytes, cost.operations, cost.expected_us) for cost in kernels)
        yield f"| {kernels[0].kernel} | {kernels[0].launches} | {cells} |"
    totals = " | ".join(
        _cell(
            sum(cost.num_bytes for cost in kernels),
            sum(cost.operations for cost in kernels),
            sum(cost.expected_us for cost in kernels),
        )
        for kernels in by_step
    )
    yield f"| all | {sum(cost.launches for cost in by_step[0])} | {totals} |"
    for kernels in zip(*(extra_costs(shape, step) for step in STEPS), strict=True):
        cells = " | ".join(_cell(cost.num_bytes, cost.operations, cost.expected_us) for cost in kernels)
        yield f"| where asked for: {kernels[0].kernel} | {kernels[0].launches} | {cells} |"


def _cell(num_bytes: int, operations: int, expected_us: float) -> str:
    return f"{num_bytes / 1e6:,.1f}, {operations / 1e9:,.1f}, {expected_us:,.0f}"


if __name__ == "__main__":
    print("\n".join([*lines(), "", *attention_lines()]))
