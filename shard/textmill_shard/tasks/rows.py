"""A batch of rows and its answers, as plain values between the server and the row loop. No torch."""

# n tokens of a row, L labels, k answers

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

IdArray = np.ndarray[tuple[int], np.dtype[np.int64]]
IdArray2 = np.ndarray[tuple[int, int], np.dtype[np.int64]]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class HeadName(Enum):
    """What is asked of the rows of a batch. The values are the names of the fields of `RowBatch.head` on the wire."""

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
class VectorParams:
    """The form of a row's vector."""

    dimensions: int = 0  # first numbers to keep, 0 = all
    is_normalized: bool | None = None  # divided by its length after the cut; None = as the model's files say
    prompt_length: int = 0  # first tokens that the prompt takes


@dataclass(frozen=True, slots=True)
class TokenLabelParams:
    """The tokens whose labels are wanted."""

    is_wanted_n: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class MaskParams:
    """The masked tokens of a row, and how many ids to answer with for each."""

    positions: IdArray  # places in the row, ascending
    top_k: int
    target_ids: IdArray  # ids to choose from; empty = the vocabulary


@dataclass(frozen=True, slots=True)
class SpanParams:
    """The tokens among which spans are looked for."""

    roles_n: np.ndarray[tuple[int], np.dtype[np.uint8]]  # 2 = a span may have the token, 1 = "no answer", 0 = neither
    max_span_tokens: int
    max_spans: int


@dataclass(frozen=True, slots=True)
class BoxParams:
    """The least score of an object."""

    threshold: float


class Timestamps(Enum):
    """Which parts of a transcript have times."""

    NONE = "none"
    SEGMENTS = "segments"
    WORDS = "words"
    CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class TranscriptParams:
    """How speech is written down."""

    timestamps: Timestamps = Timestamps.NONE
    language: str = ""  # code of the language that is spoken, empty = the model finds out
    translates: bool = False  # into English
    max_new_tokens: int = 0  # 0 = as the model's files say
    num_beams: int = 0  # 0 = as the model's files say
    chunk_s: float = 0.0  # seconds of a chunk (CTC), 0 = 30
    stride_s: float = 0.0  # seconds that neighbouring chunks share on each side (CTC), 0 = a sixth of a chunk
    prompt: str = ""  # text that comes before the audio
    is_measured: bool = False  # the answer has segments with their measures


@dataclass(frozen=True, slots=True)
class SegmentParams:
    """Which segments of an image count."""

    threshold: float
    mask_threshold: float
    overlap_threshold: float
    subtask: str = ""  # empty = the model's first


@dataclass(frozen=True, slots=True)
class WritingParams:
    """How a text about an image is written. None leaves the choice to the model's files. Lengths are in tokens."""

    max_new_tokens: int | None = None
    max_length: int | None = None  # with the tokens that the model begins with
    min_length: int | None = None  # counted as for max_length
    num_beams: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0 = all tokens
    top_p: float | None = None
    repetition_penalty: float | None = None
    max_time_s: float | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None  # 0 = no such rule
    with_probability: bool = False


@dataclass(frozen=True, slots=True)
class DocumentParams:
    """Which words of a page may answer a question."""

    boxes: IdArray2  # `[words, 4]`: left, top, right and bottom in thousandths of the page
    max_window_tokens: int  # with the question and the special tokens
    stride: int  # tokens that neighbouring windows share
    max_span_tokens: int
    max_spans: int


class SoundFormat(Enum):
    """The formats of a file of speech."""

    FLAC = "flac"
    WAV = "wav"
    OGG = "ogg"
    MP3 = "mp3"
    OPUS = "opus"
    PCM = "pcm"


@dataclass(frozen=True, slots=True)
class SoundParams:
    """How a text is spoken. None stands for the number of the model's files."""

    sound_format: SoundFormat = SoundFormat.FLAC
    seed: int = 0  # of the noise
    speaker: int = 0
    speaking_rate: float | None = None
    noise_scale: float | None = None
    noise_scale_duration: float | None = None
    speed: float = 1.0  # times the speaking rate


Params = (
    VectorParams
    | TokenLabelParams
    | MaskParams
    | SpanParams
    | BoxParams
    | TranscriptParams
    | SegmentParams
    | WritingParams
    | DocumentParams
    | SoundParams
    | None
)


@dataclass(frozen=True, slots=True)
class Row:
    """One text as token ids, with the special tokens."""

    token_ids: IdArray
    token_types: IdArray | None  # parallel to token_ids; None = 0 everywhere
    params: Params = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class MediaRow:
    """One file, as the client sent it, and texts about the file in the order of the call."""

    file: bytes = field(repr=False)
    params: Params = None
    texts: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A table, and questions about the table."""

    columns: tuple[str, ...] = field(repr=False)
    cells: tuple[str, ...] = field(repr=False)  # row after row
    questions: tuple[str, ...] = field(repr=False)
    is_sequential: bool = False  # each question follows the one before
    params: Params = None


@dataclass(frozen=True, slots=True)
class StringRow:
    """One text as a string, which the tokenizer of the shard reads."""

    text: str
    params: Params = None


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that are computed together, under a number that the router has chosen."""

    number: int
    head: HeadName
    rows: Sequence[Row | MediaRow | TableRow | StringRow]


@dataclass(frozen=True, slots=True)
class SparseVector:
    """The weights above 0 of a row."""

    ids: IdArray  # ascending
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Filling:
    """The best ids for one masked token."""

    ids: IdArray  # best first
    probabilities: FloatArray


@dataclass(frozen=True, slots=True)
class Spans:
    """The best spans of a row, best first, and the score of "no answer"."""

    starts: IdArray  # place of the first token
    ends: IdArray  # place of the last token
    scores: FloatArray  # p(start) x p(end)
    null_score: float


class FailureCode(Enum):
    """The kinds of faults that end one row."""

    NOT_FINITE = "not_finite"
    NO_MEMORY = "no_memory"
    INTERNAL = "internal"
    BAD_MEDIA = "bad_media"
    BAD_TEXT = "bad_text"


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why a row has no answer."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class Boxes:
    """The objects of an image, in the model's order."""

    label_ids: IdArray
    scores: FloatArray
    corners: IdArray  # `[objects, 4]`: xmin, ymin, xmax, ymax in pixels


@dataclass(frozen=True, slots=True)
class SegmentMeasures:
    """How sure the model is of a segment. The segments of one window of audio share all numbers but `token_ids`."""

    seek: int  # first frame of the window, of 10 ms
    token_ids: tuple[int, ...]  # of the segment, with its timestamps
    avg_logprob: float  # per token of the window, with the end of text
    compression_ratio: float  # bytes of the window's text, divided by its bytes when compressed by zlib
    no_speech_prob: float  # that the window holds no speech


@dataclass(frozen=True, slots=True)
class TranscriptChunk:
    """A part of a transcript, with seconds from the beginning of the audio."""

    text: str
    start_s: float
    end_s: float | None  # None = the model gave no end
    measures: SegmentMeasures | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of speech."""

    text: str
    chunks: tuple[TranscriptChunk, ...] = ()
    language: str = ""  # English name of the language that is spoken, empty where the model knows none
    segments: tuple[TranscriptChunk, ...] = ()  # with measures, as they were generated


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of an image: a label and a mask each, and scores where the subtask has some."""

    label_ids: Sequence[int]
    scores: Sequence[float] | None
    masks: Sequence[bytes] = field(repr=False)  # files of PNG


@dataclass(frozen=True, slots=True)
class Depth:
    """The depth of each pixel of an image, in the model's unit, and a picture of the depths as a PNG."""

    depths_HW: FloatArray = field(repr=False)
    picture: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Writing:
    """A text about an image."""

    text: str
    probability: float | None = None  # of the tokens up to the end token; None = not asked for
    is_drawn: bool = False  # another call gets another text


@dataclass(frozen=True, slots=True)
class PageSpans:
    """The best spans of a page in words, the best one first."""

    starts: IdArray  # number of the first word
    ends: IdArray  # number of the last word
    scores: FloatArray
    null_score: float  # smallest score of "no answer" in a window


@dataclass(frozen=True, slots=True)
class CellChoice:
    """The cells of an answer by row and column, and the label of what is to be done with the cells.

    `label` is an index into the labels of the model, None where the model has none. `is_plain` says that the label
    stands for the cells themselves. `num_kept` are the rows of the table that the model has read, and `is_cut` says
    that words of them were left out.
    """

    cells: Sequence[tuple[int, int]]
    label: int | None
    is_plain: bool
    num_kept: int
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """The choice of each question."""

    choices: Sequence[CellChoice]


@dataclass(frozen=True, slots=True)
class Sound:
    """A text, spoken."""

    file: bytes = field(repr=False)  # in the format that was asked for
    seconds: float


# vectors `[width]`, token vectors `[n, width]`, labels `[L]`, token labels `[wanted tokens, L]`; one Filling per mask;
# pair scores `[texts]`
Answer = (
    FloatArray
    | SparseVector
    | tuple[Filling, ...]
    | Spans
    | Boxes
    | Transcript
    | Segments
    | Depth
    | Writing
    | PageSpans
    | CellAnswer
    | Sound
)


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """The answer or the failure of each row, in the order of the batch."""

    number: int
    head: HeadName
    answers: Sequence[Answer | RowFailure] = field(repr=False)
    audio_seconds: Sequence[float] = ()  # per row; empty for rows of another kind
    num_tokens: Sequence[int] = ()  # per row, of the shard's own tokenizer; empty for rows of another kind
    wait_ns: int = 0  # from the arrival of the batch until its turn
    compute_ns: int = 0  # from its turn until the answers were on the host
