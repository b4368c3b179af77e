"""The facts of a model whose calls are rows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """The part of `TaskFacts` in shard.proto that the router uses; names and units are those of the message."""

    protocol_version: int
    model_id: str
    model_sha: str
    model_type: str
    dtype: str
    device: str
    task: str
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    problem_type: str
    max_row_tokens: int
    max_batch_tokens: int
    counts_padding: bool
    vector_width: int
    token_vector_width: int
    is_normalized: bool
    vocab_size: int
    num_token_types: int
    mask_token_id: int | None
    tokenizer_digest: str
    media: str  # "image" or "audio" where rows are files, "table" or "text" (strings) where they are those, else empty
    max_batch_files: int
    languages: tuple[str, ...]
    subtasks: tuple[str, ...]
    num_speakers: int
