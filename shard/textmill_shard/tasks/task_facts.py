"""What the router must know of a model that computes rows."""

from dataclasses import dataclass

from textmill_shard.tasks.rows import HeadName


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Facts of the loaded model, as `TaskFacts` of the wire describes them."""

    model_id: str
    model_sha: str
    model_type: str
    dtype: str
    device: str
    task: str
    heads: tuple[HeadName, ...]
    labels: tuple[str, ...]
    problem_type: str
    weight_bytes: int
    # Of models that read texts:
    max_row_tokens: int = 0
    max_batch_tokens: int = 0
    counts_padding: bool = False
    vector_width: int = 0
    token_vector_width: int = 0
    is_normalized: bool = False
    vocab_size: int = 0
    num_token_types: int = 0
    mask_token_id: int | None = None
    tokenizer_digest: str = ""
    # Of models that read files, tables or strings:
    media: str = ""  # "image", "audio", "table", or "text" of strings
    max_batch_files: int = 0
    languages: tuple[str, ...] = ()
    subtasks: tuple[str, ...] = ()  # of segmentation
    num_speakers: int = 0  # voices of a model that speaks
