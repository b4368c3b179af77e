"""The options of a call of `load_model`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OnProgress = Callable[[str, float], None]  # phase ("config", "weights", "warmup") and the done share of it, 0 .. 1


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The model to load, and the way to load it."""

    model_dir: Path
    dtype: str = "auto"  # "auto" or one of model_config.DTYPES
    device: str = "cpu"  # "cpu", "cuda", "cuda:1"
    block_size: int = 16  # tokens per block
    native_cache_dir: Path | None = None  # where compiled kernels are kept; None = plain torch only
    num_threads: int = 1  # of the native kernels
    num_slots: int = 8  # requests that can run at once; layers with a state keep a row per slot
    attention_backend: str | None = None  # one of options.ATTENTION_BACKENDS; None: the device decides
    kv_cache_dtype: str = "auto"  # one of options.KV_CACHE_DTYPES
    native_decoder: bool = True  # a native call per step for llama-type models; needs the native kernels
    trust_remote_code: bool = False  # run modelling code that lies in the folder
    allow_pickle: bool = False  # read *.bin where there are no safetensors
    text_only: bool = False  # leave the tower of a model with images out
    disabled_swaps: tuple[str, ...] = ()  # swaps (of options.SWAPS) that are not made
