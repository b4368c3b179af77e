"""How a checkpoint wants to write: generation_config.json, and what config.json says for one task.

Only the tasks on `POST /` begin from these values. The routes of TGI and OpenAI have defaults of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_router.text.tokenizer_files import read_json_object

# Values that ask for more than the engine does on these routes, where they are larger than the given number.
_NOT_SERVED = {"num_beams": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0}
_TRANSLATION = "translation_"


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """The values of a task. `prefix` is put before each text. `not_served` names values that count for nothing here."""

    values: Mapping[str, float]
    do_sample: bool
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
        values = {
            name: value
            for name, value in merged.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        prefix = merged.get("prefix")
        return CheckpointDefaults(
            values,
            merged.get("do_sample") is True,
            prefix if isinstance(prefix, str) else "",
            tuple(f"{name} {values[name]:g}" for name, most in _NOT_SERVED.items() if values.get(name, most) > most),
        )


def read_checkpoint_writing(folder: Path) -> CheckpointWriting:
    """Read the files of a folder; a file that is not there says nothing."""
    params = read_json_object(folder / "config.json").get("task_specific_params")
    of_tasks = {
        str(name): value
        for name, value in (params if isinstance(params, dict) else {}).items()
        if isinstance(value, dict)
    }
    return CheckpointWriting(read_json_object(folder / "generation_config.json"), of_tasks)
