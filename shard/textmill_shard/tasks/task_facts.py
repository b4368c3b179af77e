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
    weight_bytes: int
