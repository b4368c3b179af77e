"""How a checkpoint wants to write: generation_config.json, and what config.json says for one task.

Only the tasks on `POST /` begin from these values. The routes of TGI and OpenAI have defaults of their own.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_router.bounds import MAX_I32, MAX_U32, shown_number
from textmill_router.text.tokenizer_files import read_json_object

# Values that ask for more than this server does, where they differ from the given value, which stands for off.
_NOT_SERVED: Mapping[str, object] = {
    "begin_suppress_tokens": None,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "renormalize_logits": False,
    "sequence_bias": None,
}
_TRANSLATION = "translation_"
MAX_BEAMS = 64  # more than any published checkpoint asks for, and the default number of slots


@dataclass(frozen=True, slots=True)
class _Range:
    """The least and the greatest value of a number, and whether the number is whole."""

    low: float
    high: float
    is_whole: bool = False


# Of the numbers that count where a call does not say otherwise. A call may ask for less (`api/tgi/writing_wish.py`).
_RANGES: Mapping[str, _Range] = {
    "max_length": _Range(1, MAX_U32, is_whole=True),
    "max_new_tokens": _Range(1, MAX_U32, is_whole=True),
    "min_length": _Range(0, MAX_U32, is_whole=True),
    "min_new_tokens": _Range(0, MAX_U32, is_whole=True),
    "num_beams": _Range(1, MAX_BEAMS, is_whole=True),
    "no_repeat_ngram_size": _Range(0, MAX_I32, is_whole=True),
    "encoder_no_repeat_ngram_size": _Range(0, MAX_I32, is_whole=True),
    "length_penalty": _Range(-100, 100),
    "temperature": _Range(0, 100),
    "top_k": _Range(0, MAX_I32, is_whole=True),
    "top_p": _Range(0, 1),
    "typical_p": _Range(0, 1),
    "repetition_penalty": _Range(0, 100),
}
log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A value in the files of a checkpoint cannot be obeyed. The text names file, field and range."""


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """The values of a task.

    `numbers` has the values that are numbers in their ranges, by name. `prefix` is put before each text. `not_served`
    names values that count for nothing here.
    """

    numbers: Mapping[str, float]
    do_sample: bool
    early_stopping: bool | str
    forced_last_ids: tuple[int, ...]
    bad_sequences: tuple[tuple[int, ...], ...]
    prefix: str
    not_served: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointWriting:
    """The files of a checkpoint, from which the defaults of a task follow."""

    generation: Mapping[str, Any]
    of_tasks: Mapping[str, Mapping[str, Any]]

    @property
    def translations(self) -> list[str]:
        """The pairs of languages that config.json knows, as `en_to_de`."""
        return sorted(name.removeprefix(_TRANSLATION) for name in self.of_tasks if name.startswith(_TRANSLATION))

    def defaults_of(self, task: str, languages: str | None = None) -> CheckpointDefaults:
        """Return the defaults of a task; `languages` is one of `translations`, and without it the only one counts."""
        own = self.of_tasks.get(task, {})
        if task == "translation":
            pairs = self.translations
            wanted = languages if languages is not None else pairs[0] if len(pairs) == 1 else None
            own = self.of_tasks.get(f"{_TRANSLATION}{wanted}", own)
        merged = {**self.generation, **own}
        prefix = merged.get("prefix")
        early_stopping = merged.get("early_stopping")
        return CheckpointDefaults(
            numbers={
                name: value
                for name, value in merged.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and not _fault_of(name, value)
            },
            do_sample=merged.get("do_sample") is True,
            early_stopping="never" if early_stopping == "never" else early_stopping is True,
            forced_last_ids=_ids(merged.get("forced_eos_token_id")),
            bad_sequences=tuple(ids for ids in map(_ids, _bad_words(merged)) if ids),
            prefix=prefix if isinstance(prefix, str) else "",
            not_served=(
                *(
                    f"{name} {merged[name]}"
                    for name, off in _NOT_SERVED.items()
                    if merged.get(name) not in (None, off, []) and merged.get(name) != off
                ),
                *(f"{name} {_shown(value)}" for name, value in merged.items() if _fault_of(name, value)),
            ),
        )


def _bad_words(merged: Mapping[str, Any]) -> list[Any]:
    return [*_list(merged.get("bad_words_ids")), *_list(merged.get("suppress_tokens"))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _ids(value: Any) -> tuple[int, ...]:
    """Return the token ids of a value that is an id or a list of ids."""
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, int) and not isinstance(one, bool))


def _fault_of(name: str, value: Any) -> str:
    """Return what a value must be, empty for a value that can be obeyed or that no field of the table has."""
    row = _RANGES.get(name)
    if row is None or value is None:
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and row.low <= value <= row.high and (not row.is_whole or value == int(value)):
        return ""
    return f"must be {'a whole number from ' if row.is_whole else ''}{row.low} to {row.high}"


def _shown(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return shown_number(value) if is_number else repr(value)[:32]


def _faults(file: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each value that cannot be obeyed."""
    for name, value in values.items():
        if fault := _fault_of(name, value):
            yield f"`{name}` of {file} {fault}, found {_shown(value)}"


def read_checkpoint_writing(folder: Path, *, must_fit: bool) -> CheckpointWriting:
    """Read the files of a folder; a file that is not there says nothing.

    Older folders have no generation_config.json, and the values stand in config.json. With `must_fit` a number that
    cannot be obeyed raises CheckpointError; else the number counts for nothing, which the log tells.
    """
    config = read_json_object(folder / "config.json")
    params = config.get("task_specific_params")
    of_tasks = {
        str(name): value
        for name, value in (params if isinstance(params, dict) else {}).items()
        if isinstance(value, dict)
    }
    path = folder / "generation_config.json"
    generation = read_json_object(path) if path.is_file() else config
    faults = list(_faults(str(path if path.is_file() else folder / "config.json"), generation))
    for task, own in of_tasks.items():
        faults += _faults(f"task_specific_params.{task} in {folder / 'config.json'}", own)
    if faults and must_fit:
        raise CheckpointError(f"{faults[0]}; correct the file")
    for fault in faults:
        log.warning("%s: the value counts for nothing", fault)
    return CheckpointWriting(generation, of_tasks)
