"""A GPU whose tensors have values, which are computed on the CPU: mixing devices raises, as with a real GPU.

Where `FakeGpu` moves a model that was loaded on the CPU, this GPU also loads models, whose code reads values then. A
tensor of the GPU is a tensor of the CPU of another class, which tells another device.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, get_default_nowrap_functions
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
_Tensor: Any = torch.Tensor
# What may get tensors of two devices: copies, and functions that look at an object and not at its values.
_CROSSING = frozenset({_Tensor.copy_, _Tensor.data.__set__, _Tensor.grad.__set__, torch.is_tensor})
_STRICT = frozenset({torch.cat, torch.stack, torch.concat})  # where not even a scalar may be on the CPU


class GpuTensor(torch.Tensor):
    """A tensor of the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (_Tensor.to, _Tensor.cpu, _Tensor.cuda, _Tensor.type_as):
            return _move(function, args, kwargs)
        if function is torch._has_compatible_shallow_copy_type:
            return _is_gpu(args[0]) == _is_gpu(args[1])
        _check_devices(function, args, kwargs)
        device = kwargs.get("device")
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.histc:  # which a CPU computes for floats alone
                result = function(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
            else:
                result = function(*args, **kwargs)
        if function in get_default_nowrap_functions():
            return result
        return _as_cpu(result) if device is not None and torch.device(device).type == "cpu" else _as_gpu(result)


class _Generator(torch.Generator):
    """A generator of the CPU, which may tell the GPU as its device."""

    on_gpu: bool

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.on_gpu = torch.device(device).type == "cuda"
        return made


class GpuMode(TorchFunctionMode):
    """Makes tensors of the GPU where `device` says so, and pins memory by copying it."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kwargs.pop("pin_memory", None)
        if function is _Tensor.pin_memory:
            return args[0].clone()
        if function in (_Tensor.to, _Tensor.cuda, _Tensor.type_as):
            return _move(function, args, kwargs)
        if function in (torch.tensor, torch.as_tensor) and args and _is_gpu(args[0]):
            return _move(_Tensor.to, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return function(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and not getattr(generator, "on_gpu", False):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return _as_gpu(function(*_as_cpu(args), **{**kwargs, "device": "cpu"}))


def _is_gpu(value: Any) -> bool:
    return isinstance(value, GpuTensor)


def _as_gpu(value: Any) -> Any:
    return _each_tensor(value, lambda tensor: tensor if _is_gpu(tensor) else tensor.as_subclass(GpuTensor))


def _as_cpu(value: Any) -> Any:
    return _each_tensor(value, lambda tensor: tensor.as_subclass(torch.Tensor) if _is_gpu(tensor) else tensor)


def _each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if not any(torch.is_tensor(leaf) for leaf in tree_leaves(value)):
        return value  # a torch.Size too, which stays what it is
    return tree_map(lambda leaf: change(leaf) if torch.is_tensor(leaf) else leaf, value)


def _move(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copy a tensor to a device, a dtype, or those of another tensor."""
    source, *wanted = args
    device, dtype = source.device, source.dtype
    if function is _Tensor.cpu:
        device = torch.device("cpu")
    if function is _Tensor.cuda:
        device = GPU
    for value in (*wanted, *kwargs.values()):
        if isinstance(value, str | torch.device | int) and not isinstance(value, bool):
            device = torch.device(value)
        elif isinstance(value, torch.dtype):
            dtype = value
        elif torch.is_tensor(value):
            device, dtype = value.device, value.dtype
    with torch._C.DisableTorchFunctionSubclass():
        is_moved = device.type != source.device.type
        if device.type == "meta":
            return torch.empty_like(_as_cpu(source), device="meta")
        if source.device.type == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        is_copy = is_moved or kwargs.get("copy", False)
        made = _Tensor.to(_as_cpu(source), dtype=dtype, copy=is_copy)
        if not is_copy and dtype is source.dtype:
            return source
    return _as_gpu(made) if device.type == "cuda" else made


def _check_devices(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise for tensors of two devices. A scalar of the CPU meets any tensor, and indices may be on the CPU."""
    # Operations below the functions of torch, of which recordings consist, have results of no class.
    if function in _CROSSING or isinstance(function, torch._ops.OpOverload):
        return
    if function is _Tensor.__getitem__ and _is_gpu(args[0]):
        return
    if function is _Tensor.__setitem__ and _is_gpu(args[0]):
        key = args[1] if isinstance(args[1], tuple) else (args[1],)
        if not any(torch.is_tensor(part) and part.dim() for part in key):
            return
        args = (args[0], args[2])
    found = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
    strangers = [leaf for leaf in found if not _is_gpu(leaf) and (leaf.dim() or function in _STRICT)]
    if strangers and len(strangers) < len(found):
        name = getattr(function, "__name__", str(function))
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")


@contextmanager
def valued_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this thread have a GPU with values, and each thread that makes the GPU its device."""
    vmap = torch.vmap

    def vmap_on_gpu(function: Any, *args: Any, **kwargs: Any) -> Any:
        mapped = vmap(function, *args, **kwargs)

        def call(*given: Any) -> Any:
            found = mapped(*given)
            return _as_gpu(found) if any(_is_gpu(leaf) for leaf in given) else found

        return call

    monkeypatch.setattr(torch, "vmap", vmap_on_gpu)
    monkeypatch.setattr(torch, "Generator", _Generator)
    main = threading.current_thread()

    def set_device(_: object) -> None:
        if threading.current_thread() is not main:
            GpuMode().__enter__()  # until the thread ends

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with GpuMode():
        yield
