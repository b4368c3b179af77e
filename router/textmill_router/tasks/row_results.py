"""What comes back of a row: the answer to its wish, or why there is none."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


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
class SegmentMeasures:
    """How sure the model is of a segment. The segments of one window of audio share all numbers but `token_ids`.

    `seek` is the first frame of the window, of 10 ms; `avg_logprob` is per token of the window, with the end of text;
    `compression_ratio` is of the window's text, by zlib; `no_speech_prob` is that of a window without speech.
    """

    seek: int
    token_ids: tuple[int, ...]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class TranscriptPart:
    """A part of a transcript, with seconds from the beginning; no end where the model gave none."""

    text: str
    start_s: float
    end_s: float | None
    measures: SegmentMeasures | None = None


@dataclass(frozen=True, slots=True)
class TranscriptAnswer:
    """The words of speech, and their parts where times were asked for.

    `segments` have measures, and stand beside the parts where the call wishes for measures. `language` is an English
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
