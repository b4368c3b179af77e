"""What a call asks of a row, by the head of the model that computes the answer."""

from array import array
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
    """The words of speech. Zeros and the empty language leave the choice to the model's files.

    `is_measured`: the answer has segments with their measures.
    """

    timestamps: Timestamps = Timestamps.NONE
    language: str = ""
    translates: bool = False
    max_new_tokens: int = 0
    num_beams: int = 0
    chunk_s: float = 0.0
    stride_s: float = 0.0
    prompt: str = ""
    is_measured: bool = False


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
