"""How a checkpoint wants to write: generation_config.json, and what config.json says for one task.

Only the tasks on `POST /` begin from these values. The routes of TGI and OpenAI have defaults of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """The values of a task.

    `numbers` has the values that are numbers, by name. `prefix` is put before each text. `not_served` names values
    that count for nothing here.
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
                if isinstance(value, int | float) and not isinstance(value, bool)
            },
            do_sample=merged.get("do_sample") is True,
            early_stopping="never" if early_stopping == "never" else early_stopping is True,
            forced_last_ids=_ids(merged.get("forced_eos_token_id")),
            bad_sequences=tuple(ids for ids in map(_ids, _bad_words(merged)) if ids),
            prefix=prefix if isinstance(prefix, str) else "",
            not_served=tuple(
                f"{name} {merged[name]}"
                for name, off in _NOT_SERVED.items()
                if merged.get(name) not in (None, off, []) and merged.get(name) != off
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


def read_checkpoint_writing(folder: Path) -> CheckpointWriting:
    """Read the files of a folder; a file that is not there says nothing.

    Older folders have no generation_config.json, and the values stand in config.json.
    """
    config = read_json_object(folder / "config.json")
    params = config.get("task_specific_params")
    of_tasks = {
        str(name): value
        for name, value in (params if isinstance(params, dict) else {}).items()
        if isinstance(value, dict)
    }
    path = folder / "generation_config.json"
    return CheckpointWriting(read_json_object(path) if path.is_file() else config, of_tasks)
