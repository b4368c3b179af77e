"""The answers of tasks, as the OpenAPI document describes them."""

from typing import Any

import msgspec


class LabelScore(msgspec.Struct):
    """A label with its score."""

    label: str
    score: float


class ZeroShotAnswer(msgspec.Struct):
    """The labels of the call, the best first, with their scores."""

    sequence: str
    labels: list[str]
    scores: list[float]


class EntityGroup(msgspec.Struct):
    """An entity of several tokens; `start` and `end` are characters of the text."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class TokenEntity(msgspec.Struct):
    """The label of one token, with `aggregation_strategy` none."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class Filling(msgspec.Struct):
    """A token in the place of the mask."""

    score: float
    token: int
    token_str: str
    sequence: str


class AnswerSpan(msgspec.Struct):
    """The part of a context that answers the question; `start` and `end` are characters of the context."""

    score: float
    start: int
    end: int
    answer: str


class TableAnswer(msgspec.Struct):
    """The cells of a table that answer a question, each as row and column, and what is to be done with the cells."""

    answer: str
    coordinates: list[list[int]]
    cells: list[str]
    aggregator: str


class BoxCorners(msgspec.Struct):
    """The corners of an object in whole pixels of the image."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class DetectedObject(msgspec.Struct):
    """An object of an image."""

    score: float
    label: str
    box: BoxCorners


class ImageSegment(msgspec.Struct, omit_defaults=True):
    """A part of an image; `mask` is a PNG in base64, as large as the image. Semantic segments have no score."""

    label: str
    mask: str
    score: float | None = None


class DepthMap(msgspec.Struct):
    """The depth of each pixel of an image, row after row in the model's unit, and a picture of the depths.

    The picture is a PNG in base64, as large as the image: 0 where the depth is least, 255 where the depth is most.
    """

    predicted_depth: list[list[float]]
    depth: str


class Caption(msgspec.Struct):
    """A text about an image, or the words that stand in the image."""

    generated_text: str


class PictureAnswer(msgspec.Struct):
    """An answer to a question about an image."""

    score: float
    answer: str


class PageAnswer(msgspec.Struct, omit_defaults=True):
    """An answer to a question about a page.

    `start` and `end` are the numbers of the first and the last word, from 0; a model that writes its answer has none.
    """

    score: float
    answer: str
    start: int | None = None
    end: int | None = None


class SpokenPart(msgspec.Struct):
    """A part of a transcript with its first and last second, of which the last may be null."""

    text: str
    timestamp: list[float | None]


class TranscriptAnswer(msgspec.Struct, omit_defaults=True):
    """The words of speech; `chunks` where times were asked for."""

    text: str
    chunks: list[SpokenPart] = []


class AudioUsage(msgspec.Struct):
    """The seconds of audio of a call, rounded up; `type` is duration."""

    type: str
    seconds: int


class TranscriptionAnswer(msgspec.Struct):
    """The words of speech, in OpenAI's form."""

    text: str
    usage: AudioUsage


class TranscribedSegment(msgspec.Struct):
    """A part of a transcript as the model divides speech, with its seconds from the beginning.

    The segments of one window of audio have the same seek, avg_logprob, compression_ratio and no_speech_prob.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscribedWord(msgspec.Struct):
    """A word with its seconds from the beginning."""

    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, omit_defaults=True):
    """The words of speech with their language and their times, for response_format verbose_json."""

    text: str
    usage: AudioUsage
    task: str
    language: str
    duration: float
    segments: list[TranscribedSegment] = []
    words: list[TranscribedWord] = []


class SparseWeight(msgspec.Struct):
    """The weight of an id of the vocabulary."""

    index: int
    value: float


class RankedText(msgspec.Struct, omit_defaults=True):
    """A text by its index in the call, with its score."""

    index: int
    score: float
    text: str | None = None


class RankedDocument(msgspec.Struct, omit_defaults=True):
    """A document by its index in the call, in Cohere's form."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Usage(msgspec.Struct):
    """The tokens of a call."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(msgspec.Struct):
    """The documents in their order, in Cohere's form."""

    object: str
    results: list[RankedDocument]
    model: str
    usage: Usage


class EmbeddingEntry(msgspec.Struct):
    """The vector of one input: numbers, or base64 of little-endian 32-bit floats."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(msgspec.Struct):
    """OpenAI's list of vectors."""

    object: str
    data: list[EmbeddingEntry]
    model: str
    usage: Usage


class TaskInfoAnswer(msgspec.Struct):
    """The answer of /info for a model without generation."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    task: str
    tasks: list[str]
    labels: dict[str, str]
    model_type: str
    model_dtype: str
    model_device_type: str
    max_input_length: int | None
    max_input_tokens: int | None
    max_client_batch_size: int
    max_batch_tokens: int
    max_concurrent_requests: int
    vector_width: int | None
    router: str
    version: str
    health_state: str
    replicas: list[dict[str, Any]]
