"""Reads from a model folder which file holds which tensor, JSON files and the digest of the tokenizer."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.tensor_files import SAFETENSORS_SUFFIX, names_of_tensors

log = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
PICKLED_SINGLE_FILE = "pytorch_model.bin"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The file of each tensor of the checkpoint."""

    file_of_tensor: Mapping[str, Path]

    @property
    def are_pickled(self) -> bool:
        return any(path.suffix != SAFETENSORS_SUFFIX for path in self.file_of_tensor.values())


def find_weight_files(folder: Path, *, allow_pickle: bool = False, named: str | None = None) -> WeightFiles:
    """Read the index or the headers of the files; no weights yet. Pickles only where there is nothing else.

    Of several files transformers' choice is read: `named` (by `transformers_weights` of config.json), else one file
    of all weights, else the index. Raises ModelFilesError.
    """
    if named is not None:
        return _find_named(folder, named)
    found = _find_files(folder, index=INDEX_FILE, single=SINGLE_FILE, suffix=SAFETENSORS_SUFFIX)
    if found is None and allow_pickle:
        found = _find_files(folder, index=PICKLED_INDEX_FILE, single=PICKLED_SINGLE_FILE, suffix=".bin")
    if found is None:
        num_safetensors = sum(path.is_file() for path in folder.glob(f"*{SAFETENSORS_SUFFIX}"))
        raise ModelFilesError(_why_no_weights(folder, num_safetensors=num_safetensors, allow_pickle=allow_pickle))
    return found


def _find_named(folder: Path, named: str) -> WeightFiles:
    if Path(named).name != named or not (folder / named).is_file():
        raise ModelFilesError(f"{folder / 'config.json'} has {named!r} as transformers_weights: no file of the folder")
    if named.endswith(f"{SAFETENSORS_SUFFIX}.index.json"):
        return _read_index(folder, named)
    if not named.endswith(SAFETENSORS_SUFFIX):
        raise ModelFilesError(f"{folder / 'config.json'} has {named!r} as transformers_weights: no safetensors file")
    return _read_single(folder / named)


def _find_files(folder: Path, *, index: str, single: str, suffix: str) -> WeightFiles | None:
    if (folder / single).is_file():
        if (folder / index).is_file():
            log.warning("of two forms of the weights the first is read", extra={"files": f"{single}, {index}"})
        return _read_single(folder / single)
    if (folder / index).is_file():
        return _read_index(folder, index)
    others = [path for path in sorted(folder.glob(f"*{suffix}")) if path.is_file() and not _is_adapter(path)]
    return _read_single(others[0]) if len(others) == 1 else None


def _read_single(path: Path) -> WeightFiles:
    return WeightFiles(dict.fromkeys(names_of_tensors(path), path))


def _read_index(folder: Path, index: str) -> WeightFiles:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFilesError(f"{folder / index} has no weight_map that says which tensor is in which file")
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelFilesError(f"{folder / index} names {len(absent)} files that are not there, first {absent[0]}")
    # A pickle is read whole only to learn its names.
    held = {name: frozenset(names_of_tensors(folder / name)) for name in names if name.endswith(SAFETENSORS_SUFFIX)}
    wrong = [tensor for tensor, name in weight_map.items() if name in held and tensor not in held[name]]
    if wrong:
        raise ModelFilesError(
            f"{folder / index} says that {wrong[0]} is in {weight_map[wrong[0]]}, which holds no tensor of that name "
            f"({len(wrong)} in all): fetch the files again, all of one revision"
        )
    return WeightFiles({tensor: folder / name for tensor, name in weight_map.items()})


def find_tokenizer_digest(folder: Path) -> str:
    """Return the hexadecimal blake2b-16 of tokenizer.json, or an empty text for a folder without one."""
    path = folder / "tokenizer.json"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else ""


def _is_adapter(path: Path) -> bool:
    return path.name in ("adapter_model.safetensors", "adapter_model.bin")


def _why_no_weights(folder: Path, *, num_safetensors: int, allow_pickle: bool) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if num_safetensors > 1:
        return f"{folder} holds {num_safetensors} safetensors files but no {INDEX_FILE} that says which tensor is where"
    adapters = [path.name for path in sorted(folder.iterdir()) if _is_adapter(path)]
    if adapters:
        return (
            f"{folder} holds the weights of an adapter ({adapters[0]}), and no model: merge the adapter into its model "
            "(`merge_and_unload()` of peft) and serve what that saves"
        )
    broken = [path.name for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    if broken:
        return f"{folder} holds {broken[0]}, a link to a file that is not there: fetch the model again"
    gguf_files = sorted(folder.glob("*.gguf"))
    if gguf_files:
        return (
            f"{folder} holds GGUF files but no safetensors; convert one with "
            f"`textmill-shard convert --gguf {gguf_files[0]} --cache-dir DIR` and serve the folder it prints"
        )
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles and allow_pickle:
        return f"{folder} holds {pickles[0].name} but neither {PICKLED_SINGLE_FILE} nor {PICKLED_INDEX_FILE}"
    if pickles:
        return (
            f"{folder} holds {pickles[0].name} but no safetensors; pickled weights can run code when they are read and "
            "are refused. Convert them where it is safe to: `AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)` writes safetensors; or give --allow-pickle, which reads tensors and "
            "refuses files that ask for more"
        )
    return f"{folder} holds no weights: {SINGLE_FILE} or {INDEX_FILE} is wanted"


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} does not hold an object")
    return content


def read_json_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list):
        raise ModelFilesError(f"{path} does not hold a list")
    return content


def read_object(parent: Mapping[str, Any], key: str, *, path: Path) -> Mapping[str, Any]:
    """Give an object inside the object of a file, empty where the file has none. Raises ModelFilesError."""
    found = parent.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelFilesError(f"{path} has {found!r} as {key}, where an object is wanted")
    return found
