"""A GPU without values: tensors of the device `cuda` that have shapes alone, on a machine without a GPU.

torch's `FakeTensorMode` raises where tensors of two devices meet, and where the host asks for a value. A CPU build of
torch cannot index such tensors with brackets or copy to them, so `FakeGpu` does both in its place, and counts copies
and launches on the way.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from types import MethodType, TracebackType
from typing import Any, Self

import torch
from textmill_shard.attention.base import AttentionRule, RotaryTables
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput, RowScan
from textmill_shard.model.graph_recorder import RecordedStep
from textmill_shard.model.kv_scales import KvScales
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.triton_kernels.constants import SCAN_IDS
from textmill_shard.triton_kernels.interface import Activation, ExpertOrder, LowRankTable, PagedIndices, TileMap
from textmill_shard.triton_kernels.part_candidates import best_of_parts
from textmill_shard.triton_kernels.tiles import Tile, count_tiles
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fakes.plain_kernels import further_parts

GPU = torch.device("cuda:0")
# Operations of torch that launch nothing.
_VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "slice", "select", "alias", "detach", "transpose", "as_strided", "t", "permute"),
        *("unsqueeze", "squeeze", "expand", "split", "split_with_sizes", "unbind", "chunk", "narrow", "diagonal"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view_as", "reshape", "flatten"),
        *("unflatten", "expand_as", "swapaxes", "movedim", "lift_fresh", "_reshape_alias"),
    }
)


class HostRead(Exception):
    """The host asked for the values of a tensor of the GPU."""


class FakeGpu:
    """Within `with`, tensors are fake and the device `cuda` exists. `counts` has launches by name, and copies."""

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        self.capability = capability
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        self.counts: Counter[str] = Counter()
        self.num_waits = 0  # copies for which the host waits: those that are awaited, and those of unpinned memory
        self._modes = (self.mode, _Launches(self), _Brackets(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor of the CPU for a real one."""
        return tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let the GPU copy to and from a tensor of the CPU while the host goes on."""
        tensor.is_pinned_here = True  # type: ignore[attr-defined]
        return tensor

    def note_copy(self, on_host: torch.Tensor, *, is_to_gpu: bool, is_awaited: bool) -> None:
        """Count a copy between a tensor of the CPU and the GPU."""
        self.counts["copy to the GPU" if is_to_gpu else "copy to the host"] += 1
        self.num_waits += is_awaited or not hasattr(on_host, "is_pinned_here")

    def num_launches(self) -> int:
        return sum(count for name, count in self.counts.items() if not name.startswith("copy "))

    def move(self, root: Any) -> None:
        """Give each object below `root` tensors of the GPU for its tensors, and the device of the GPU for a CPU's."""
        with self:
            _Mover(self).move(root)
        self.counts.clear()


class _Launches(TorchDispatchMode):
    """Counts operations on tensors of the GPU by name."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu = gpu
        self._counts = gpu.counts

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name == "_grouped_mm" and self._gpu.capability[0] not in (9, 10):
            raise HostRead("torch has no kernel for groups of rows here, and asks the host for the sizes of the groups")
        result = function(*args, **(kwargs or {}))
        if name == "copy_" and args[0].device.type != args[1].device.type:
            is_to_gpu = args[0].device.type == "cuda"
            is_awaited = not ((kwargs or {}).get("non_blocking") or args[2:] == (True,))
            self._gpu.note_copy(args[1 if is_to_gpu else 0], is_to_gpu=is_to_gpu, is_awaited=is_awaited)
            return result
        first = result[0] if isinstance(result, tuple | list) and result else result
        # As of `to` with the dtype that a tensor has. The name of an operation in place ends with an underscore.
        is_itself = any(first is given for given in args) and not name.endswith("_")
        if torch.is_tensor(first) and first.device.type == "cuda" and name not in _VIEWS and not is_itself:
            self._counts[name] += 1
        return result


def _contiguous(tensor: torch.Tensor, **_: Any) -> torch.Tensor:
    if tensor.is_contiguous():
        return tensor
    return torch.ops.aten.clone.default(tensor, memory_format=torch.contiguous_format)


# What a CPU build refuses for a tensor of a GPU, and the operation that does the same.
_INSTEAD = {
    torch.Tensor.__invert__: torch.ops.aten.bitwise_not.default,
    torch.bitwise_not: torch.ops.aten.bitwise_not.default,
    torch.Tensor.__neg__: torch.ops.aten.neg.default,
    torch.neg: torch.ops.aten.neg.default,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
    torch.isfinite: lambda tensor: tensor.abs() < torch.inf,
    torch.Tensor.isfinite: lambda tensor: tensor.abs() < torch.inf,
}


class _Brackets(TorchFunctionMode):
    """Does in Python what a CPU build of torch refuses to do for tensors of a GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.from_numpy:
            return self._gpu.fake(function(*args))
        if function in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = self._gpu.fake(function(*args, **kwargs))
            return made if device is None else self._to(torch.Tensor.to, (made, device), {})
        if function is torch.Tensor.__getitem__ and _is_on_gpu(args[0]):
            return _get(args[0], args[1])
        if function is torch.Tensor.__setitem__ and _is_on_gpu(args[0]):
            return _set(*args)
        if function in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._to(function, args, kwargs)
        if function is torch.Tensor.numpy:
            raise HostRead("numpy() of a fake tensor")
        if function is torch.Tensor.pin_memory:
            return self._gpu.pin(args[0].clone())
        if function is torch.empty and kwargs.pop("pin_memory", False):
            return self._gpu.pin(function(*args, **kwargs))
        instead = _INSTEAD.get(function)
        if instead is not None and any(_is_on_gpu(given) for given in args):
            return instead(*args, **kwargs)
        return function(*args, **kwargs)

    def _to(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = self._gpu.fake(args[0])
        wanted = [*args[1:], *(kwargs.get(name) for name in ("device", "dtype", "other"))]
        device, dtype = tensor.device, tensor.dtype
        for value in wanted:
            if isinstance(value, str | torch.device):
                device = torch.device(value)
            elif isinstance(value, torch.dtype):
                dtype = value
            elif torch.is_tensor(value):
                device, dtype = value.device, value.dtype
        device = GPU if function is torch.Tensor.cuda or device.type == "cuda" else torch.device("cpu")
        if function is torch.Tensor.cpu:
            device = torch.device("cpu")
        if (device.type, dtype) == (tensor.device.type, tensor.dtype):
            return tensor
        if device.type != tensor.device.type:
            is_to_gpu = device.type == "cuda"
            self._gpu.note_copy(tensor, is_to_gpu=is_to_gpu, is_awaited=not (is_to_gpu and kwargs.get("non_blocking")))
        return torch.ops.aten._to_copy.default(tensor, device=device, dtype=dtype)


def _is_on_gpu(tensor: Any) -> bool:
    return torch.is_tensor(tensor) and tensor.device.type == "cuda"


def _views(tensor: torch.Tensor, key: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return the view that the numbers, slices and new axes of a key make, and the tensors of the key by dim."""
    parts = list(key) if isinstance(key, tuple) else [key]
    num_dims = sum(
        1 if not (torch.is_tensor(part) and part.dtype is torch.bool) else part.dim()
        for part in parts
        if part is not None and part is not Ellipsis
    )
    if Ellipsis in [part for part in parts if not torch.is_tensor(part)]:
        place = next(place for place, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (tensor.dim() - num_dims)
    indices: list[torch.Tensor | None] = []
    dim = 0
    for part in parts:
        if part is None:
            tensor = torch.ops.aten.unsqueeze.default(tensor, dim)
        elif isinstance(part, slice):
            if part != slice(None):
                tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
        elif torch.is_tensor(part):
            indices += [None] * (dim - len(indices)) + [part]
        elif isinstance(part, int):
            tensor = torch.ops.aten.select.int(tensor, dim, part)
            continue
        else:
            raise TypeError(f"the fake GPU knows no index {part!r}")
        dim += 1
    return tensor, indices


def _get(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    view, indices = _views(tensor, key)
    found: torch.Tensor = torch.ops.aten.index.Tensor(view, indices) if indices else view
    return found


def _set(tensor: torch.Tensor, key: Any, value: Any) -> None:
    view, indices = _views(tensor, key)
    if not torch.is_tensor(value):
        value = torch.full((), value, dtype=tensor.dtype, device=tensor.device)
    elif value.device.type == "cpu" and value.dim() == 0:
        value = value.to(tensor.device)
    if indices:
        torch.ops.aten.index_put_.default(view, indices, value)
    else:
        torch.ops.aten.copy_.default(view, value)


class _Mover:
    """Walks through the objects of the shard, and through lists, dicts, tuples and modules."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self._moved: dict[int, Any] = {}
        self._held: list[Any] = []  # ids stay unique, because the objects are held

    def move(self, value: Any) -> Any:
        """Return what stands in for a value; objects are changed in place."""
        if id(value) in self._moved:
            return self._moved[id(value)]
        self._held.append(value)
        if torch.is_tensor(value):
            moved = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=GPU)
            if isinstance(value, nn.Parameter):
                moved = nn.Parameter(moved, requires_grad=False)
        elif isinstance(value, torch.device):
            moved = GPU if value.type == "cpu" else value
        elif isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            moved = value
            found = [self.move(entry) for entry in value]
            if any(new is not old for new, old in zip(found, value, strict=True)):
                if isinstance(value, list):
                    value[:] = found
                else:
                    moved = tuple(found)
        else:
            moved = value
            self._moved[id(value)] = moved
            if isinstance(value, dict):
                for key in list(value):
                    new = self.move(value[key])
                    if new is not value[key]:
                        value[key] = new
            elif isinstance(value, MethodType):
                self.move(value.__self__)
            elif isinstance(value, nn.Module) or type(value).__module__.startswith("textmill_shard"):
                self._move_fields(value)
        self._moved[id(value)] = moved
        return moved

    def _move_fields(self, value: Any) -> None:
        names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        for name in {*names, *getattr(value, "__dict__", {})}:
            if not hasattr(value, name):
                continue
            old = getattr(value, name) if name in names else value.__dict__[name]
            new = self.move(old)
            if new is not old:
                if name in names:
                    object.__setattr__(value, name, new)
                else:
                    value.__dict__[name] = new


class ShapeGraphs:
    """Implements `GraphRecorder`: a replay is one launch. `launches` has what each recorded step launches."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._counts = gpu.counts
        self.launches: list[Counter[str]] = []

    def rehearse(self, run: Callable[[], object]) -> None:
        run()

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        run()  # as before a recording of CUDA
        before = Counter(self._counts)
        output = run()
        self.launches.append(self._counts - before)

        def replay() -> None:
            self._counts["graph"] += 1

        return RecordedStep(replay=replay, output=output)


class ShapeKernels:
    """Implements `DeviceKernels` by shapes alone, and counts as launches what the real kernels launch on an H100."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._counts = gpu.counts
        self.capability = gpu.capability

    def _launch(self, name: str, *tensors: torch.Tensor | None) -> None:
        strangers = [tensor for tensor in tensors if tensor is not None and tensor.device.type != "cuda"]
        assert not strangers, f"the kernel {name} gets a tensor of the CPU"
        self._counts[name] += 1

    def unpack_rows(
        self,
        packed: torch.Tensor,
        last_ids_S: torch.Tensor,
        batch: ForwardBatch,
        *,
        scratch_block: int,
        block_size: int,
    ) -> None:
        written = (batch.slots_R, batch.adapters_R, batch.is_long_rope_T, batch.rope_positions_3T)
        self._launch("unpack_rows", packed, last_ids_S, batch.input_ids_T, batch.block_tables_RB, *written)

    def write_kv(
        self,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKE: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        *,
        places_T: torch.Tensor,
        tables: RotaryTables | None,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        given = () if tables is None else (tables.cosines_TP, tables.sines_TP)
        given += () if scales is None else (scales.keys_K, scales.values_K)
        self._launch("write_kv", query_THD, key_TKD, value_TKE, key_pool, value_pool, places_T, *given)
        return query_THD if tables is None else query_THD.new_empty(query_THD.shape)

    def plan_tiles(
        self,
        query_starts: torch.Tensor,
        context_lens_R: torch.Tensor,
        tile: Tile,
        *,
        group: int,
        num_kv_heads: int,
        num_tokens: int,
    ) -> TileMap:
        self._launch("plan_tiles", query_starts, context_lens_R)
        num_sequences = len(context_lens_R)
        num_tiles = count_tiles(tile, group=group, num_tokens=num_tokens, num_sequences=num_sequences)
        num_further = further_parts(
            tile, group=group, num_kv_heads=num_kv_heads, num_tokens=num_tokens, num_sequences=num_sequences
        )
        numbers = (query_starts.new_empty(length) for length in (num_tiles, num_tiles + 1, num_further))
        return TileMap(tile, *numbers)

    def attention(
        self,
        query_THD: torch.Tensor,
        key_pool: torch.Tensor,
        value_pool: torch.Tensor,
        indices: PagedIndices,
        tiles: TileMap,
        rule: AttentionRule,
        scales: KvScales | None = None,
    ) -> torch.Tensor:
        self._launch(
            "paged_attention",
            *(query_THD, key_pool, value_pool, tiles.sequences, rule.sinks_H, rule.slopes_H),
            *(indices.query_starts, indices.context_lens_R, indices.block_tables_RB),
            *(() if scales is None else (scales.keys_K, scales.values_K)),
        )
        if len(tiles.further_tiles):
            self._launch("merge_splits", query_THD, tiles.parts_before, tiles.further_tiles)
        return query_THD.new_empty(*query_THD.shape[:2], value_pool.shape[3])

    def rms_norm(self, x: torch.Tensor, factor_I: torch.Tensor, epsilon: float) -> torch.Tensor:
        self._launch("rms_norm", x, factor_I)
        return x.new_empty(x.shape)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, factor_I: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._launch("add_rms_norm", x, residual, factor_I)
        return x.new_empty(x.shape), x.new_empty(x.shape)

    def gate_up(self, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        self._launch("gate_up", gate_TI, up_TI)
        return gate_TI.new_empty(gate_TI.shape)

    def add_low_rank(
        self,
        out_TO: torch.Tensor,
        x_TI: torch.Tensor,
        table: LowRankTable,
        places_T: torch.Tensor,
        *,
        max_rank: int,
        is_decode: bool,
    ) -> None:
        tables = (table.a_addresses_P, table.b_addresses_P, table.ranks_P, table.scales_P)
        self._launch("shrink", x_TI, places_T, *tables)
        self._launch("expand", out_TO, places_T, *tables)
        assert (places_T.dtype, places_T.shape) == (torch.int32, x_TI.shape[:1])

    def expert_product(
        self,
        x_NI: torch.Tensor,
        weights: torch.Tensor,
        biases_EO: torch.Tensor | None,
        order: ExpertOrder,
        *,
        has_inputs_first: bool,
    ) -> torch.Tensor:
        self._launch("expert_product", x_NI, weights, biases_EO, order.pairs_P, order.ends_E)
        assert (order.pairs_P.dtype, order.ends_E.dtype) == (torch.int64, torch.int32)
        return x_NI.new_empty(len(order.pairs_P), weights.shape[2 if has_inputs_first else 1])

    def gumbel(self, seed_words_S2: torch.Tensor, positions_S: torch.Tensor, ids_SC: torch.Tensor) -> torch.Tensor:
        self._launch("gumbel", seed_words_S2, positions_S, ids_SC)
        return torch.empty(ids_SC.shape, dtype=torch.float64, device=ids_SC.device)

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        given = [
            change
            for change in (getattr(changes, field.name) for field in dataclasses.fields(changes))
            if change is not None
        ]
        tensors = [value for change in given for value in _tensors_of(change)]
        self._launch("scan_parts", logits_NV, *tensors)
        self._launch("merge_parts", logits_NV)
        num_rows = len(logits_NV)
        best_N = torch.empty(num_rows, dtype=torch.int64, device=logits_NV.device)
        not_finite_N = torch.empty(num_rows, dtype=torch.bool, device=logits_NV.device)
        return FirstPass(
            scores_NV=logits_NV.new_empty(logits_NV.shape) if changes.changes_scores else logits_NV,
            scan=RowScan(best_N=best_N, not_finite_N=not_finite_N, log_mass_N=logits_NV.new_empty(num_rows)),
            best_N=best_N,
            tempered_mass_N=None if changes.temperatures is None else logits_NV.new_empty(num_rows),
            candidates_NC=_candidates_of(logits_NV, num_candidates) if 0 < num_candidates <= SCAN_IDS else None,
        )


def _candidates_of(logits_NV: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Return what the kernels make of the candidates of the parts of the rows, by the operations of the kernels."""
    num_parts = -(-logits_NV.shape[1] // SCAN_IDS)
    shape = (len(logits_NV), num_parts, num_candidates)
    return best_of_parts(torch.empty(shape, dtype=torch.int64, device=logits_NV.device))


def _tensors_of(change: Any) -> list[torch.Tensor]:
    values = [getattr(change, field.name) for field in dataclasses.fields(change)]
    return [tensor for value in values for tensor in ([value] if torch.is_tensor(value) else _tensors_of(value))]
