"""The call of OpenAI's routes of audio, /v1/audio/transcriptions and /v1/audio/translations: a form with one file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.file_input import FileInput
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, TranscriptAnswer, TranscriptPart
from textmill_router.tasks.rows import FileRow
from textmill_router.tasks.speech_recognition import TASK, check_translates, language_of, seconds_of
from textmill_router.tasks.subtitles import subrip, web_vtt
from textmill_router.tasks.wishes import Timestamps, TranscriptWish

FILE_FIELD = "file"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_TIMED_FORMATS = ("srt", "verbose_json", "vtt")
_WORD, _SEGMENT = "word", "segment"
MAX_PROMPT_CHARACTERS = 4000  # from the end; Whisper reads the last 222 tokens
_PLAIN, _VTT = b"text/plain; charset=utf-8", b"text/vtt; charset=utf-8"


class TranscriptionFields(msgspec.Struct, gc=False):
    """The fields of the form beside the file."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    response_format: str = "json"
    granularities: list[str] = msgspec.field(name="timestamp_granularities[]", default_factory=list)
    stream: bool = False
    include: list[str] = msgspec.field(name="include[]", default_factory=list)


@dataclass(frozen=True, slots=True)
class TranscriptionBody:
    """A form as it came."""

    file: FileInput
    fields: TranscriptionFields


@dataclass(slots=True)
class TranscriptionCall:
    """A call of one file, whose answer has the form that the call asks for."""

    file: FileInput
    wish: TranscriptWish
    response_format: str
    granularities: frozenset[str]
    task: str = TASK
    notes: CallNotes = field(default_factory=CallNotes)
    num_rows: int = 1
    num_characters: int = 0

    async def rows(self) -> list[FileRow]:
        return [FileRow(await self.file.read(), self.wish, self.file.path)]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        (found,) = results
        assert isinstance(found, TranscriptAnswer)
        text = found.text.strip()
        match self.response_format:
            case "text":
                return Answer(f"{text}\n".encode(), media_type=_PLAIN)
            case "srt":
                return Answer(subrip(found.segments, found.seconds).encode(), media_type=_PLAIN)
            case "vtt":
                return Answer(web_vtt(found.segments, found.seconds).encode(), media_type=_VTT)
        answer: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": math.ceil(found.seconds)}}
        return Answer({**answer, **self._details(found)} if self.response_format == "verbose_json" else answer)

    def _details(self, found: TranscriptAnswer) -> dict[str, Any]:
        """Return what verbose_json adds."""
        details: dict[str, Any] = {
            "task": "translate" if self.wish.translates else "transcribe",
            "language": found.language or "unknown",
            "duration": seconds_of(found.seconds),
        }
        if _SEGMENT in self.granularities:
            details["segments"] = [_segment(number, part, found.seconds) for number, part in enumerate(found.segments)]
        if _WORD in self.granularities:
            details["words"] = [{"word": part.text.strip(), **_times(part, found.seconds)} for part in found.parts]
        return details


def transcription_call(body: TranscriptionBody, model: TaskModel, shapes: ClientShapes) -> TranscriptionCall:
    """Apply the rules of /v1/audio/transcriptions. Raises ValidationFailed."""
    return _call(body, model, translates=False)


def translation_call(body: TranscriptionBody, model: TaskModel, shapes: ClientShapes) -> TranscriptionCall:
    """Apply the rules of /v1/audio/translations. Raises ValidationFailed for a model that does not translate too."""
    generates = bool(model.facts.languages)
    if not generates:
        raise ValidationFailed("this model writes down what is said, and does not translate")
    check_translates(model, field="")
    return _call(body, model, translates=True)


def _call(body: TranscriptionBody, model: TaskModel, *, translates: bool) -> TranscriptionCall:
    fields, generates = body.fields, bool(model.facts.languages)
    body.file.check()
    _check(fields, generates=generates)
    granularities = frozenset(fields.granularities or [_SEGMENT if generates else _WORD])
    wish = TranscriptWish(
        _timestamps(fields.response_format, granularities),
        language_of(fields.language, model, field="language") if fields.language else "",
        translates,
        prompt=(fields.prompt or "").strip()[-MAX_PROMPT_CHARACTERS:],
        is_measured=_wants_segments(fields.response_format, granularities),
    )
    return TranscriptionCall(body.file, wish, fields.response_format, granularities)


def _check(fields: TranscriptionFields, *, generates: bool) -> None:
    if fields.response_format not in FORMATS:
        raise _refusal("response_format", f"must be one of {', '.join(FORMATS)}", fields.response_format)
    if fields.stream:
        raise _refusal("stream", "must be false, because a transcript is answered whole", "true")
    if fields.temperature:
        raise _refusal("temperature", "must be 0, because words are searched and not drawn", fields.temperature)
    if fields.include:
        raise _refusal(
            "include[]", "must be left out, because likelihoods of single tokens are not answered", fields.include[0]
        )
    wrong = next((each for each in fields.granularities if each not in (_WORD, _SEGMENT)), None)
    if wrong is not None:
        raise _refusal("timestamp_granularities[]", f"must be {_WORD} or {_SEGMENT}", wrong)
    if fields.granularities and fields.response_format != "verbose_json":
        raise _refusal("timestamp_granularities[]", "needs response_format verbose_json", fields.response_format)
    if generates:
        return
    if _SEGMENT in fields.granularities or fields.response_format in ("srt", "vtt"):
        name = "timestamp_granularities[]" if fields.granularities else "response_format"
        raise ValidationFailed(
            f"`{name}` asks for segments, and this model gives a character at each step; its words have times "
            "(response_format verbose_json)",
            field=name,
        )
    for name in ("language", "prompt"):
        if getattr(fields, name):
            raise ValidationFailed(
                f"`{name}` is of models that generate, and this one gives a character at each step; leave the field "
                "out",
                field=name,
            )


def _refusal(name: str, wanted: str, found: object) -> ValidationFailed:
    return ValidationFailed(f"`{name}` {wanted}, found {str(found)[:32]!r}", field=name)


def _timestamps(response_format: str, granularities: frozenset[str]) -> Timestamps:
    if response_format not in _TIMED_FORMATS:
        return Timestamps.NONE
    if response_format == "verbose_json" and _WORD in granularities:
        return Timestamps.WORDS
    return Timestamps.SEGMENTS


def _wants_segments(response_format: str, granularities: frozenset[str]) -> bool:
    return response_format in ("srt", "vtt") or (response_format == "verbose_json" and _SEGMENT in granularities)


def _segment(number: int, part: TranscriptPart, duration_s: float) -> dict[str, Any]:
    """Return a segment with its measures, in OpenAI's names. Words are searched and not drawn, at temperature 0."""
    measures = part.measures
    assert measures is not None
    return {
        "id": number,
        "seek": measures.seek,
        **_times(part, duration_s),
        "text": part.text,
        "tokens": list(measures.token_ids),
        "temperature": 0.0,
        "avg_logprob": measures.avg_logprob,
        "compression_ratio": measures.compression_ratio,
        "no_speech_prob": measures.no_speech_prob,
    }


def _times(part: TranscriptPart, duration_s: float) -> dict[str, float]:
    """Return the times of a part; one without an end goes to the end of the audio."""
    end_s = max(part.start_s, duration_s) if part.end_s is None else part.end_s
    return {"start": seconds_of(part.start_s), "end": seconds_of(end_s)}
