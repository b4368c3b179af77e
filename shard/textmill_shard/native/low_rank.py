"""The matrices of LoRA adapters in the layout that the kernels read (low_rank.h), and the call for single layers."""

# r rank of a part, R ranks of a product, I inputs, O outputs, C chunks of the inner axis, H half panels of 16 outputs,
# W words of 32 bits

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

RANKS_AT_ONCE = 8
CHUNK = 32  # inner elements that stand side by side in A
HALF_OUTPUTS = 16
MAX_PARTS = 3
ALIGNMENT = 64  # bytes

_I64, _PTR = ctypes.c_int64, ctypes.c_void_p


class LowRankProduct(ctypes.Structure):
    """`low_rank` of low_rank.h. All zeros: the adapter leaves the product alone."""

    _fields_ = (
        ("num_ranks", _I64),
        ("a", _PTR),
        ("scales", _PTR),
        ("num_parts", _I64),
        ("is_gate", _I64),
        ("first_half", _I64 * MAX_PARTS),
        ("first_rank", _I64 * MAX_PARTS),
        ("part_ranks", _I64 * MAX_PARTS),
        ("b", _PTR * MAX_PARTS),
        ("half_words", _I64 * MAX_PARTS),
    )


NOTHING = LowRankProduct()


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """The adapter of one of the linear layers that make up a product. Without A and B the layer is left alone."""

    num_outputs: int
    a_rI: torch.Tensor | None = None
    b_Or: torch.Tensor | None = None
    scale: float | torch.Tensor = 1.0  # of the part, or of each rank


class PackedLowRank:
    """The packed matrices of one product."""

    def __init__(self, parts: Sequence[LowRankPart], *, is_gate: bool = False) -> None:
        """Pack the parts, of which at least one has matrices. Any thread may call this.

        Of several parts each gets a width of its own where its outputs begin at a multiple of 16 (or `is_gate`: half
        panels belong to the two parts in turn). Else the parts become one, with zeros where a part's outputs do not
        take another part's ranks.
        """
        assert len(parts) <= MAX_PARTS
        starts = [sum(part.num_outputs for part in parts[:number]) for number in range(len(parts))]
        if not is_gate and any(start % HALF_OUTPUTS for start in starts):
            parts, starts = [_joined(parts)], [0]
        self.product = LowRankProduct(num_parts=len(parts), is_gate=is_gate)
        scales: list[torch.Tensor] = []
        groups: list[torch.Tensor] = []
        halves: dict[int, torch.Tensor] = {}  # B of each part that has one
        first_rank = 0
        for number, (part, start) in enumerate(zip(parts, starts, strict=True)):
            self.product.first_half[number] = start // HALF_OUTPUTS
            self.product.first_rank[number] = first_rank
            if part.a_rI is None or part.b_Or is None:
                continue
            rank = part.a_rI.shape[0]
            padded = -(-rank // RANKS_AT_ONCE) * RANKS_AT_ONCE
            self.product.part_ranks[number] = padded
            groups.append(_pack_a(part.a_rI, padded))
            scales.append(torch.nn.functional.pad(_scales(part), (0, padded - rank)))
            halves[number] = _pack_b(part.b_Or, padded)
            first_rank += padded
        self.product.num_ranks = first_rank
        self._b_starts = self._place_halves(halves, is_gate=is_gate)
        joined = torch.cat(list(halves.values()), dim=1) if is_gate else _one_after_the_other(halves.values())
        self._a, self._scales, self._b = torch.cat(groups), torch.cat(scales), joined
        self._point()

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrices, with their padding."""
        return self._a.nbytes + self._scales.nbytes + self._b.nbytes

    @property
    def room_bytes(self) -> int:
        """Bytes that `move` needs."""
        return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in (self._a, self._scales, self._b))

    def move(self, memory: torch.Tensor) -> None:
        """Copy the matrices to the beginning of `memory`, uint8 and aligned to 64 bytes, and read them there."""
        self._a, rest = _moved(self._a, memory)
        self._b, rest = _moved(self._b, rest)
        self._scales, _ = _moved(self._scales, rest)
        self._point()

    def _place_halves(self, halves: Mapping[int, torch.Tensor], *, is_gate: bool) -> dict[int, int]:
        """Note how far apart half panels stand. Return the bytes before each part."""
        starts, before = {}, 0
        row_words = sum(half_HW.shape[1] for half_HW in halves.values())
        for number, half_HW in halves.items():
            starts[number] = before
            self.product.half_words[number] = row_words if is_gate else half_HW.shape[1]
            before += (half_HW.shape[1] if is_gate else half_HW.numel()) * half_HW.itemsize
        return starts

    def _point(self) -> None:
        self.product.a, self.product.scales = self._a.data_ptr(), self._scales.data_ptr()
        for number, start in self._b_starts.items():
            self.product.b[number] = self._b.data_ptr() + start


def pack_together(products: Sequence[PackedLowRank], allocate: Callable[[int], torch.Tensor]) -> None:
    """Move the matrices of all products into one piece of memory, which `allocate` gives for a number of bytes.

    On large pages each step needs fewer walks through page tables.
    """
    memory = allocate(sum(product.room_bytes for product in products))
    start = 0
    for product in products:
        product.move(memory[start:])
        start += product.room_bytes


def _one_after_the_other(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _moved(tensor: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a copy of the tensor at the beginning of the memory, and the rest of the memory."""
    copy = memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    return copy, memory[-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT :]


def _joined(parts: Sequence[LowRankPart]) -> LowRankPart:
    """Return one part with the ranks of all, and zeros where a part's outputs do not take another part's ranks."""
    given = [part for part in parts if part.a_rI is not None and part.b_Or is not None]
    rows = [
        torch.cat(
            [
                owner.b_Or if owner is part else owner.b_Or.new_zeros(part.num_outputs, owner.b_Or.shape[1])
                for owner in given
                if owner.b_Or is not None
            ],
            dim=1,
        )
        for part in parts
    ]
    return LowRankPart(
        num_outputs=sum(part.num_outputs for part in parts),
        a_rI=torch.cat([part.a_rI for part in given if part.a_rI is not None]),
        b_Or=torch.cat(rows),
        scale=torch.cat([_scales(part) for part in given]),
    )


def _scales(part: LowRankPart) -> torch.Tensor:
    """Return the scale of each rank of a part, float32."""
    assert part.a_rI is not None
    return torch.as_tensor(part.scale, dtype=torch.float32).expand(part.a_rI.shape[0])


def _pack_a(a_rI: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return `[num_ranks / 8, C, 8, 32]` with zeros in the padding."""
    rank, inner = a_rI.shape
    num_chunks = -(-inner // CHUNK)
    padded = a_rI.new_zeros(num_ranks, num_chunks * CHUNK)
    padded[:rank, :inner] = a_rI
    return padded.view(-1, RANKS_AT_ONCE, num_chunks, CHUNK).permute(0, 2, 1, 3).contiguous()


def _pack_b(b_Or: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return int32 `[H, W * 16]` with zeros in the padding.

    H has one half panel more than the outputs fill, because the last panel of a product is always computed whole.
    """
    num_outputs, rank = b_Or.shape
    num_halves = -(-num_outputs // HALF_OUTPUTS) + 1
    padded = b_Or.new_zeros(num_halves * HALF_OUTPUTS, num_ranks)
    padded[:num_outputs, :rank] = b_Or
    return padded.view(torch.int32).view(num_halves, HALF_OUTPUTS, -1).permute(0, 2, 1).reshape(num_halves, -1)


def product_pointers(products: Sequence[Any]) -> Any:
    """Return an array of pointers to structures, or to arrays of structures, which the caller keeps alive."""
    return (_PTR * len(products))(*(ctypes.addressof(product) for product in products))
