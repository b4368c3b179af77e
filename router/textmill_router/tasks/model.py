"""What a task knows of the model: the shard's facts, the reader of texts, and prompts of the model's files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from textmill_router.errors import TooManyRows, ValidationFailed
from textmill_router.tasks.task_facts import TaskFacts
from textmill_router.tasks.text_reader import TextReader
from textmill_router.text.tokenizer_files import read_json_object

CHARACTERS_PER_TOKEN = 16
MIN_MAX_CHARACTERS = 100_000
SENTENCE_CONFIG = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts that are put before the texts of a call, by their names."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None

    def text_of(self, name: str | None, path: str) -> str:
        """Return the prompt of a name, or the default prompt. Raises ValidationFailed for an unknown name at `path`."""
        wanted = self.default_name if name is None else name
        if wanted is None:
            return ""
        if wanted not in self.by_name:
            known = ", ".join(sorted(self.by_name)[:20]) or "the model has none"
            raise ValidationFailed(
                f"`{path}` must be one of the model's prompts, found {wanted[:64]!r}: {known}", field=path
            )
        return self.by_name[wanted]


def read_prompts(folder: Path) -> Prompts:
    """Return the prompts of the file of sentence-transformers, or none without the file."""
    found = read_json_object(folder / SENTENCE_CONFIG)
    prompts = found.get("prompts")
    by_name = {str(name): text for name, text in (prompts or {}).items() if isinstance(text, str)}
    default = found.get("default_prompt_name")
    return Prompts(by_name, default if default in by_name else None)


@dataclass(frozen=True, slots=True)
class TaskModel:
    """The model of a server of rows, and the limits of its calls."""

    facts: TaskFacts
    text_reader: TextReader | None  # None where rows are files
    name: str  # under which the model is served
    prompts: Prompts = field(default_factory=Prompts)
    max_rows: int = 1024

    @property
    def reader(self) -> TextReader:
        """The reader of a model whose rows are texts."""
        assert self.text_reader is not None
        return self.text_reader

    @property
    def max_row_tokens(self) -> int | None:
        """The tokens of the longest row, special tokens included; None where the model has no bound."""
        return self.facts.max_row_tokens or None

    def close(self) -> None:
        """End the threads of the reader."""
        if self.text_reader is not None:
            self.text_reader.close()

    def room(self, *, is_pair: bool = False) -> int | None:
        """Return how many tokens of text fit beside the special tokens of a row; None where there is no bound."""
        most = self.max_row_tokens
        return None if most is None else max(0, most - self.reader.num_added(is_pair=is_pair))

    def check_count(self, count: int, path: str) -> None:
        """Raise TooManyRows for a call of more rows than a call may have, and ValidationFailed for none."""
        if count < 1:
            what = {"": "text", "table": "table"}.get(self.facts.media, "file")
            raise ValidationFailed(f"`{path}` must hold at least one {what}, found an empty list", field=path)
        if count > self.max_rows:
            raise TooManyRows(
                f"`{path}` makes {count} rows, and a call has at most {self.max_rows} (--max-task-rows); send less",
                field=path,
            )

    def check_text(self, text: str, path: str, *, may_be_empty: bool = False) -> None:
        """Raise ValidationFailed for an empty text, and for one that is far too long, before it is tokenised."""
        if not text and not may_be_empty:
            raise ValidationFailed(f"`{path}` must not be empty", field=path)
        most = max(MIN_MAX_CHARACTERS, CHARACTERS_PER_TOKEN * (self.max_row_tokens or 0))
        if len(text) > most:
            raise ValidationFailed(
                f"`{path}` has {len(text)} characters, and a text has at most {most}; send a shorter text", field=path
            )


def too_long(path: str, num_tokens: int, most: int, advice: str) -> ValidationFailed:
    """Return the refusal of a text that does not fit a row."""
    return ValidationFailed(
        f"`{path}` has {num_tokens} tokens, and the model reads at most {most}; {advice}", field=path
    )
