"""A room in which the ranks of one machine exchange numbers and messages, through memory that all of them have mapped.

The memory is a file without a name (memfd), which the system frees with the last process that holds it. Nothing lies in
/dev/shm, so that the size of a container's /dev/shm does not matter.
"""

# N ranks

import ctypes
import os

import torch

TOKEN_BYTES = 128  # at the start of the memory, as in ranks.h
MAX_RANKS = 64
BANK_BYTES = 512 * 1024  # two banks of a rank stay in the cache that its core has alone, or nearly
_SUMMED = (torch.float32, torch.bfloat16)

_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p


class RankLost(ConnectionError):
    """Another rank has ended, or has not come to an exchange in time."""


def room_bytes(library: ctypes.CDLL, num_ranks: int, bank_bytes: int) -> int:
    """Return the size of a room's memory in bytes."""
    library.textmill_room_bytes.restype = _I64
    library.textmill_room_bytes.argtypes = [_I64, _I64]
    return int(library.textmill_room_bytes(num_ranks, bank_bytes))


class RankRoom:
    """This rank's part of a room. One thread at a time calls it, and all ranks make equal calls in equal order.

    Each call waits for the other ranks, and raises RankLost when one of them has ended (after 0.1 s) or does not come
    within the time of the room. No call succeeds after that.
    """

    def __init__(
        self, library: ctypes.CDLL, file: int, *, rank: int, num_ranks: int, bank_bytes: int, timeout_s: float
    ) -> None:
        """Map the file, which belongs to the room from now on. `bank_bytes` is a multiple of 64. Raises OSError."""
        assert bank_bytes % 64 == 0, bank_bytes
        assert num_ranks <= MAX_RANKS, num_ranks
        library.textmill_room_new.restype = _PTR
        library.textmill_room_new.argtypes = [_I32, _I32, _I32, _I64, _I64]
        library.textmill_room_free.argtypes = [_PTR]
        library.textmill_room_num_exchanges.restype = _I64
        library.textmill_room_num_exchanges.argtypes = [_PTR]
        library.textmill_room_failure.argtypes = [_PTR]
        library.textmill_room_add.argtypes = [_PTR, _PTR, _I64, _I64]
        library.textmill_room_gather.argtypes = [_PTR, _PTR, _I64, _PTR]
        library.textmill_room_send.argtypes = [_PTR, _PTR, _I64]
        library.textmill_room_await.argtypes = [_PTR, ctypes.POINTER(_I64)]
        library.textmill_room_take.argtypes = [_PTR, _PTR, _I64]
        self.rank, self.num_ranks, self.file = rank, num_ranks, file
        self._library = library
        self._timeout_s = timeout_s
        self._room = library.textmill_room_new(file, rank, num_ranks, bank_bytes, int(timeout_s * 1e9))
        if not self._room:
            raise OSError(f"the memory that the ranks share cannot be mapped ({num_ranks} ranks)")

    @property
    def address(self) -> int:
        """The room, for kernels that exchange numbers themselves."""
        assert self._room, "the room is closed"
        return int(self._room)

    @property
    def num_exchanges(self) -> int:
        """How often the ranks have added numbers up or gathered them."""
        return int(self._library.textmill_room_num_exchanges(self.address))

    def close(self) -> None:
        """Leave the room. The other ranks then find that this rank has ended. A second call changes nothing."""
        if self._room:
            self._library.textmill_room_free(self._room)
            self._room = None

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum over the ranks, with equal bits on every rank.

        Sums are computed in float32, in the order of the ranks, and rounded once to the tensor's type.
        """
        numbers = tensor.contiguous()
        if tensor.dtype in _SUMMED:
            is_bf16 = tensor.dtype == torch.bfloat16
            self._check(self._library.textmill_room_add(self.address, numbers.data_ptr(), numbers.numel(), is_bf16))
        else:
            parts = self.gather(numbers).to(torch.float32 if tensor.is_floating_point() else tensor.dtype)
            numbers = parts.cumsum(0)[-1].to(tensor.dtype)
        if numbers.data_ptr() != tensor.data_ptr():
            tensor.copy_(numbers)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `[N, ...]`, the tensors of all ranks, which have one shape and type."""
        part = tensor.contiguous()
        parts = torch.empty(self.num_ranks, *part.shape, dtype=part.dtype)
        self._check(self._library.textmill_room_gather(self.address, part.data_ptr(), part.nbytes, parts.data_ptr()))
        return parts

    def send(self, message: bytes) -> None:
        """Hand a message to all other ranks. Rank 0 calls this, and waits for ranks that are two messages behind."""
        self._check(self._library.textmill_room_send(self.address, message, len(message)))

    def receive(self) -> bytes:
        """Wait for the next message of rank 0. The other ranks call this."""
        length = _I64()
        self._check(self._library.textmill_room_await(self.address, ctypes.byref(length)))
        message = ctypes.create_string_buffer(length.value)
        self._check(self._library.textmill_room_take(self.address, message, length.value))
        return message.raw

    def check(self) -> None:
        """Raise RankLost when an exchange of a kernel has failed."""
        self._check(self._library.textmill_room_failure(self.address))

    def _check(self, failure: int) -> None:
        if not failure:
            return
        other = abs(failure) - 1
        if failure > 0:
            raise RankLost(f"rank {other} of {self.num_ranks} has ended")
        raise RankLost(f"rank {other} of {self.num_ranks} did not come to an exchange within {self._timeout_s:g} s")


def make_room_file(num_bytes: int, token: bytes) -> int:
    """Return a file without a name, of so many bytes that the system has set aside. Raises OSError where it has not."""
    assert len(token) <= TOKEN_BYTES
    file = os.memfd_create("textmill-ranks", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(file, 0, num_bytes)
        os.pwrite(file, token, 0)
    except OSError:
        os.close(file)
        raise
    return file


def open_room_file(path: str, num_bytes: int, token: bytes) -> int:
    """Open the file of another process by its path in /proc. Raises OSError where that is not the room's file."""
    if not os.readlink(path).startswith("/memfd:textmill-ranks"):
        raise OSError(f"{path} is another file")
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(file).st_size != num_bytes or os.pread(file, len(token), 0) != token:
        os.close(file)
        raise OSError(f"{path} is another file")
    return file
