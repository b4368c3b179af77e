"""The words of rows: a text as token ids or a file, what is asked of a row, and what comes back.

A row is one input of a model that does not generate: a text, a pair of texts, a window of a text, or a file.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Head(StrEnum):
    """What a shard can compute of a row. The values are the names in `TaskFacts.heads` and `RowBatch.head`."""

    VECTORS = "vectors"
    TOKEN_VECTORS = "token_vectors"
    SPARSE_VECTORS = "sparse_vectors"
    LABELS = "labels"
    TOKEN_LABELS = "token_labels"
    MASKS = "masks"
    SPANS = "spans"
    BOXES = "boxes"
    TRANSCRIPTS = "transcripts"
    SEGMENTS = "segments"
    PAIR_SCORES = "pair_scores"
    DEPTHS = "depths"
    WRITINGS = "writings"
    DOCUMENTS = "documents"
    CELLS = "cells"
    SOUNDS = "sounds"


@dataclass(frozen=True, slots=True)
class VectorWish:
    """One vector of the row: its first `dimensions` numbers (0: all), divided by their length where `is_normalized`.

    `prompt_length` are the first tokens of the row that a prompt takes.
    """

    dimensions: int = 0
    is_normalized: bool = True
    prompt_length: int = 0


@dataclass(frozen=True, slots=True)
class TokenVectorWish:
    """A vector of each token."""


@dataclass(frozen=True, slots=True)
class SparseVectorWish:
    """The weights of vocabulary ids."""


@dataclass(frozen=True, slots=True)
class LabelWish:
    """The raw score of each label."""


@dataclass(frozen=True, slots=True)
class TokenLabelWish:
    """The probability of each label at each token whose byte in `is_wanted` is 1."""

    is_wanted: bytes


@dataclass(frozen=True, slots=True)
class MaskWish:
    """The `top_k` best ids at each of the places, among `target_ids` where there are some, else of the vocabulary."""

    places: tuple[int, ...]
    top_k: int
    target_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SpanWish:
    """The best spans. `roles` has a byte per token: 2 may be in a span, 1 stands for no answer, 0 is neither."""

    roles: bytes
    max_span_tokens: int
    max_spans: int


@dataclass(frozen=True, slots=True)
class BoxWish:
    """The objects of an image whose scores are above `threshold`."""

    threshold: float


class Timestamps(StrEnum):
    """Which parts of a transcript have times."""

    NONE = "none"
    SEGMENTS = "segments"
    WORDS = "words"
    CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class TranscriptWish:
    """The words of speech. Zeros and the empty language leave the choice to the model's files."""

    timestamps: Timestamps = Timestamps.NONE
    language: str = ""
    translates: bool = False
    max_new_tokens: int = 0
    num_beams: int = 0
    chunk_s: float = 0.0
    stride_s: float = 0.0
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class SegmentWish:
    """The segments of an image; the shares are from 0 to 1, and an empty subtask is the model's first."""

    threshold: float
    mask_threshold: float
    overlap_threshold: float
    subtask: str = ""


@dataclass(frozen=True, slots=True)
class PairScoreWish:
    """The probability of each text about an image."""


@dataclass(frozen=True, slots=True)
class DepthWish:
    """The depth of each pixel of an image."""


@dataclass(frozen=True, slots=True)
class WritingWish:
    """A text about an image. None leaves the choice to the model's files; names and units are those of the wire."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    num_beams: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    max_time_s: float | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    with_probability: bool = False


@dataclass(frozen=True, slots=True)
class DocumentWish:
    """The words of a page that answer a question. The texts of the row are the question and then the words.

    `boxes` has the left, top, right and bottom edge of each word in thousandths of the page. Lengths are in tokens.
    """

    boxes: "array[int]" = field(repr=False)  # type code I
    max_window_tokens: int
    stride: int
    max_span_tokens: int
    max_spans: int


@dataclass(frozen=True, slots=True)
class CellWish:
    """The cells of a table that answer its questions."""


class SoundFormat(StrEnum):
    """The formats of a file of speech. The values are those of OpenAI's `response_format`."""

    FLAC = "flac"
    WAV = "wav"
    OGG = "ogg"
    MP3 = "mp3"
    OPUS = "opus"
    PCM = "pcm"


@dataclass(frozen=True, slots=True)
class SoundWish:
    """How a text is spoken. None leaves a number to the model's files; `speed` is a factor."""

    sound_format: SoundFormat
    seed: int
    speaker: int = 0
    speaking_rate: float | None = None
    noise_scale: float | None = None
    noise_scale_duration: float | None = None
    speed: float = 1.0


Wish = (
    VectorWish
    | TokenVectorWish
    | SparseVectorWish
    | LabelWish
    | TokenLabelWish
    | MaskWish
    | SpanWish
    | BoxWish
    | TranscriptWish
    | SegmentWish
    | PairScoreWish
    | DepthWish
    | WritingWish
    | DocumentWish
    | CellWish
    | SoundWish
)

HEAD_OF: dict[type[Wish], Head] = {
    VectorWish: Head.VECTORS,
    TokenVectorWish: Head.TOKEN_VECTORS,
    SparseVectorWish: Head.SPARSE_VECTORS,
    LabelWish: Head.LABELS,
    TokenLabelWish: Head.TOKEN_LABELS,
    MaskWish: Head.MASKS,
    SpanWish: Head.SPANS,
    BoxWish: Head.BOXES,
    TranscriptWish: Head.TRANSCRIPTS,
    SegmentWish: Head.SEGMENTS,
    PairScoreWish: Head.PAIR_SCORES,
    DepthWish: Head.DEPTHS,
    WritingWish: Head.WRITINGS,
    DocumentWish: Head.DOCUMENTS,
    CellWish: Head.CELLS,
    SoundWish: Head.SOUNDS,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `token_types` has a byte per token, or is empty where all are 0."""

    token_ids: "array[int]"  # type code I
    wish: Wish
    token_types: bytes = b""

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: tokens."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class FileRow:
    """An image or audio as the client sent it. `path` names the row in an error, as in `inputs[3]`.

    `texts` are about the file, for example a question or labels; the shard reads the texts together with the file.
    `texts_path` names them in an error.
    """

    file: bytes = field(repr=False)
    wish: Wish
    path: str
    texts: tuple[str, ...] = field(default=(), repr=False)
    texts_path: str = ""

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: bytes."""
        return len(self.file) + sum(len(text.encode()) for text in self.texts)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A table by the names of its columns and its cells, row after row, with questions about the table.

    `path` names the row in an error, as in `inputs[3]`. `is_sequential`: each question follows the one before.
    """

    columns: tuple[str, ...] = field(repr=False)
    cells: tuple[str, ...] = field(repr=False)
    questions: tuple[str, ...] = field(repr=False)
    is_sequential: bool
    wish: Wish
    path: str

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: about its bytes."""
        return sum(map(len, (*self.columns, *self.cells, *self.questions)))


@dataclass(frozen=True, slots=True)
class StringRow:
    """A text that the tokenizer of the shard reads. `path` names the row in an error."""

    text: str
    wish: Wish
    path: str

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: characters."""
        return len(self.text)


AnyRow = Row | FileRow | TableRow | StringRow


@dataclass(frozen=True, slots=True)
class Numbers:
    """The answer to a wish for vectors or labels: `width` numbers per vector, token or row, one after the other.

    A vector and the labels of a row are one run of `width` numbers; token vectors and token labels are one run per
    token that was asked for.
    """

    width: int
    values: "array[float]"  # type code f

    def runs(self) -> list[list[float]]:
        """Return the numbers of each run."""
        values, width = self.values.tolist(), self.width
        return [values[start : start + width] for start in range(0, len(values), width)]


@dataclass(frozen=True, slots=True)
class ScoredIds:
    """Ids with their scores, in the order of the answer; the answer to a wish for sparse vectors."""

    ids: Sequence[int]
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class MaskAnswer:
    """The best ids of each masked token of a row, best first."""

    of_masks: tuple[ScoredIds, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Places of the first and last token of a span in its row, and p(start) x p(end)."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class SpanAnswer:
    """The best spans of a row, best first, and the score of no answer."""

    spans: tuple[Span, ...]
    null_score: float


@dataclass(frozen=True, slots=True)
class Box:
    """An object of an image: the id of its label, its score, and xmin, ymin, xmax and ymax in pixels."""

    label_id: int
    score: float
    corners: Sequence[int]


@dataclass(frozen=True, slots=True)
class BoxAnswer:
    """The objects of an image, in the model's order."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class TranscriptPart:
    """A part of a transcript, with seconds from the beginning; no end where the model gave none."""

    text: str
    start_s: float
    end_s: float | None


@dataclass(frozen=True, slots=True)
class TranscriptAnswer:
    """The words of speech, and their parts where times were asked for.

    `segments` stand beside words, of a model that divides speech into segments. `language` is an English
    name, empty where the model knows none, and `seconds` is the length of the audio.
    """

    text: str
    parts: tuple[TranscriptPart, ...]
    language: str = ""
    segments: tuple[TranscriptPart, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an image: the id of its label, its score where the subtask has scores, and a PNG of its pixels."""

    label_id: int
    score: float | None
    mask: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SegmentAnswer:
    """The segments of an image."""

    segments: tuple[Segment, ...]


class Grid:
    """Numbers row after row, each row of the grid `width` numbers. `values` have the type code f.

    The class is no dataclass, because msgspec would write one as an object, and asks for the rows of any other class.
    """

    __slots__ = ("values", "width")

    def __init__(self, width: int, values: "array[float]") -> None:
        self.width = width
        self.values = values


@dataclass(frozen=True, slots=True)
class DepthAnswer:
    """The depth of each pixel of an image in the model's unit, and a PNG of the depths."""

    depths: Grid
    picture: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WritingAnswer:
    """A text about an image, and its probability where asked for. `is_drawn`: another call gets another text."""

    text: str
    probability: float | None
    is_drawn: bool


@dataclass(frozen=True, slots=True)
class DocumentAnswer:
    """The best spans of a page, whose places are numbers of words, the best first, and the score of no answer."""

    spans: tuple[Span, ...]
    null_score: float


@dataclass(frozen=True, slots=True)
class CellChoice:
    """The cells of an answer, as row and column, and the id of the label that says what to do with the cells.

    `is_plain`: the label stands for the cells themselves. `num_kept` are the rows of the table that the model has read,
    and `is_cut` says that words of them were left out.
    """

    cells: tuple[tuple[int, int], ...]
    label_id: int | None
    is_plain: bool
    num_kept: int
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """The choice of each question of a table."""

    choices: tuple[CellChoice, ...]


@dataclass(frozen=True, slots=True)
class SoundAnswer:
    """A text, spoken: a file in the format that was asked for."""

    file: bytes = field(repr=False)


RowResult = (
    Numbers
    | ScoredIds
    | MaskAnswer
    | SpanAnswer
    | BoxAnswer
    | TranscriptAnswer
    | SegmentAnswer
    | WritingAnswer
    | DocumentAnswer
    | DepthAnswer
    | CellAnswer
    | SoundAnswer
)


@dataclass(frozen=True, slots=True)
class RowFault:
    """The reason why a row has no answer.

    `is_of_client` says that the client sent what cannot be read: a file, or with `is_of_text` a text about the file.
    """

    message: str
    is_of_client: bool = False
    is_of_text: bool = False


@dataclass(frozen=True, slots=True)
class BatchAnswers:
    """The answer of each row of a batch, in order, and for rows of audio their seconds; else no seconds.

    `num_tokens` are the tokens of rows that the tokenizer of the shard reads; empty for other rows.
    """

    results: Sequence[RowResult | RowFault]
    audio_seconds: Sequence[float] = ()
    num_tokens: Sequence[int] = ()


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
