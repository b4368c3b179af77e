"""Checks that a batch keeps to the rules of rows (rules 28 and 31 of docs/wire.md) before the batch is computed."""

from textmill_shard.tasks.rows import (
    DocumentParams,
    MaskParams,
    MediaRow,
    Params,
    Row,
    RowBatch,
    SegmentParams,
    SoundParams,
    SpanParams,
    StringRow,
    TableRow,
    Timestamps,
    TokenLabelParams,
    TranscriptParams,
    VectorParams,
)
from textmill_shard.tasks.task_facts import TaskFacts

# The tasks that read texts about each file; no other task reads texts and files together.
TASKS_OF_TEXTS = frozenset(
    {
        "zero-shot-image-classification",
        "zero-shot-object-detection",
        "visual-question-answering",
        "document-question-answering",
    }
)
# The rows of a model by `media` of its facts; all others are files.
_KINDS: dict[str, tuple[type, str]] = {
    "": (Row, "texts"),
    "table": (TableRow, "tables"),
    "text": (StringRow, "strings"),
}


class BatchRejected(Exception):
    """A batch breaks a rule. `field` is its path on the wire."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def check_batch(batch: RowBatch, facts: TaskFacts) -> None:
    """Raises BatchRejected for the first rule that the batch breaks."""
    if batch.head not in facts.heads:
        served = ", ".join(head.value for head in facts.heads)
        raise BatchRejected("head", f"{batch.head.value} is asked for, this model serves {served}")
    rows = [row for row in batch.rows if isinstance(row, Row)]
    kind, what = _KINDS.get(facts.media, (MediaRow, "files"))
    if not all(isinstance(row, kind) for row in batch.rows):
        raise BatchRejected("rows", f"this model reads {what}")
    if facts.media:
        if len(batch.rows) > facts.max_batch_files:
            raise BatchRejected("media.files", f"{len(batch.rows)} came, max_batch_files is {facts.max_batch_files}")
        for index, file in enumerate(batch.rows):
            if isinstance(file, MediaRow) and bool(file.texts) != (facts.task in TASKS_OF_TEXTS):
                raise BatchRejected("media.texts", f"row {index} has {len(file.texts)}, the task is {facts.task}")
            _check_media_params(index, file.params, facts)
        return
    for index, row in enumerate(rows):
        _check_tokens(index, row, facts)
        _check_params(index, row, facts)
    longest = max(row.num_tokens for row in rows)
    total = sum(row.num_tokens for row in rows)
    cost = longest * len(rows) if facts.counts_padding else total
    if len(rows) > 1 and cost > facts.max_batch_tokens:
        raise BatchRejected(
            "text.lengths", f"the batch costs {cost} tokens, max_batch_tokens is {facts.max_batch_tokens}"
        )


def _check_media_params(index: int, params: Params, facts: TaskFacts) -> None:
    if isinstance(params, TranscriptParams) and params.language and params.language not in facts.languages:
        raise BatchRejected("transcripts.languages", f"row {index} names {params.language!r}, which the model lacks")
    if isinstance(params, SegmentParams) and params.subtask and params.subtask not in facts.subtasks:
        raise BatchRejected("segments.subtasks", f"row {index} names {params.subtask!r}, which the model lacks")
    if isinstance(params, DocumentParams) and facts.max_row_tokens and params.max_window_tokens > facts.max_row_tokens:
        raise BatchRejected(
            "documents.max_window_tokens",
            f"row {index} has windows of {params.max_window_tokens} tokens, max_row_tokens is {facts.max_row_tokens}",
        )
    if isinstance(params, SoundParams) and params.speaker >= facts.num_speakers:
        raise BatchRejected("sounds.wishes.speaker", f"row {index} names {params.speaker}, of {facts.num_speakers}")
    generates = bool(facts.languages)
    if isinstance(params, TranscriptParams) and not generates:
        if params.translates or params.max_new_tokens or params.num_beams or params.prompt:
            raise BatchRejected(
                "transcripts.translates", f"row {index} asks for generation, this model does not generate"
            )
        if params.timestamps is Timestamps.SEGMENTS:
            raise BatchRejected("transcripts.timestamps", f"row {index} asks for segments, this model has none")
    if isinstance(params, TranscriptParams) and params.stride_s and params.chunk_s <= 2 * params.stride_s:
        raise BatchRejected("transcripts.stride_lengths", f"row {index} has strides that leave nothing of a chunk")


def _check_tokens(index: int, row: Row, facts: TaskFacts) -> None:
    if row.num_tokens < 1:
        raise BatchRejected("text.lengths", f"row {index} has no token")
    if facts.max_row_tokens and row.num_tokens > facts.max_row_tokens:
        raise BatchRejected(
            "text.lengths", f"row {index} has {row.num_tokens} tokens, max_row_tokens is {facts.max_row_tokens}"
        )
    largest = int(row.token_ids.max())
    if largest >= facts.vocab_size:
        raise BatchRejected(
            "text.token_ids", f"row {index} has the id {largest}, the vocabulary has {facts.vocab_size}"
        )
    if row.token_types is not None and int(row.token_types.max()) >= max(facts.num_token_types, 1):
        raise BatchRejected(
            "text.token_types",
            f"row {index} has the token type {int(row.token_types.max())}, the model reads {facts.num_token_types}",
        )


def _check_params(index: int, row: Row, facts: TaskFacts) -> None:
    match row.params:
        case VectorParams(dimensions=dimensions, prompt_length=prompt_length):
            if dimensions > facts.vector_width:
                raise BatchRejected(
                    "vectors.dimensions", f"row {index} asks for {dimensions}, a vector has {facts.vector_width}"
                )
            if prompt_length >= row.num_tokens:
                raise BatchRejected(
                    "vectors.prompt_lengths", f"row {index} has {row.num_tokens} tokens, its prompt {prompt_length}"
                )
        case TokenLabelParams(is_wanted_n=is_wanted_n):
            assert len(is_wanted_n) == row.num_tokens
        case MaskParams(positions=positions, top_k=top_k, target_ids=target_ids):
            if not len(positions) or int(positions.max()) >= row.num_tokens or (positions[1:] <= positions[:-1]).any():
                raise BatchRejected(
                    "masks.positions", f"row {index} wants ascending places below {row.num_tokens}, one at least"
                )
            if top_k < 1:
                raise BatchRejected("masks.top_k", f"row {index} asks for {top_k} ids")
            if len(target_ids) and int(target_ids.max()) >= facts.vocab_size:
                raise BatchRejected("masks.target_ids", f"row {index} has the id {int(target_ids.max())}")
        case SpanParams(roles_n=roles_n, max_span_tokens=max_span_tokens, max_spans=max_spans):
            if int(roles_n.max()) > 2 or int((roles_n == 1).sum()) > 1 or not (roles_n == 2).any():
                raise BatchRejected(
                    "spans.roles", f"row {index} wants roles up to 2, a token of role 2 and at most one of role 1"
                )
            if max_span_tokens < 1 or max_spans < 1:
                raise BatchRejected("spans.max_spans", f"row {index} asks for no span")
