"""automatic-speech-recognition."""

from typing import Literal

import msgspec

from textmill_router.bounds import rounded32
from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_files
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, TranscriptAnswer
from textmill_router.tasks.wishes import Timestamps, TranscriptWish

TASK = "automatic-speech-recognition"
MIN_CHUNK_S, MAX_CHUNK_S = 0.1, 600.0  # one step of a CTC model reads up to 0.025 s
MAX_TOKENS, MAX_BEAMS = 4096, 8
DEFAULT_CHUNK_S = 30.0
MAX_STRIDE = 0.45  # of a chunk, at each of its sides
NO_STRIDE_S = 1e-6  # rounds to no sample; 0 would ask for the default
_SEGMENT_WORDS = frozenset({True, "true", "True", "1"})
_ENGLISH = frozenset({"en", "english"})
_NO_WORDS = frozenset({None, False, "false", "False", "0"})


class SpeechGeneration(msgspec.Struct, gc=False):
    """How a model that generates writes speech down. The fields of sampling stand here to be refused."""

    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


class SpeechParameters(SpeechGeneration, gc=False):
    """The parameters of automatic-speech-recognition. `generation_parameters` and `generate_kwargs` win."""

    return_timestamps: bool | str | None = None
    chunk_length_s: float | None = None
    stride_length_s: float | list[float] | None = None
    generation_parameters: SpeechGeneration | None = None
    generate_kwargs: SpeechGeneration | None = None


class SpeechBody(msgspec.Struct, gc=False):
    """The body of automatic-speech-recognition in JSON."""

    inputs: str | list[str]
    parameters: SpeechParameters | None = None


def speech_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of automatic-speech-recognition. Raises ValidationFailed and TooManyRows."""
    wish = wish_of(body.parameters or SpeechParameters(), model)
    check_files(body, model)

    def answer_of(result: RowResult) -> object:
        assert isinstance(result, TranscriptAnswer)
        answer: dict[str, object] = {"text": result.text}
        if wish.timestamps is not Timestamps.NONE:
            answer["chunks"] = [
                {
                    "text": part.text,
                    "timestamp": [seconds_of(part.start_s), None if part.end_s is None else seconds_of(part.end_s)],
                }
                for part in result.parts
            ]
        return answer

    call = FileCall(TASK, body, wish, answer_of)
    if model.facts.languages and body.parameters is not None and body.parameters.chunk_length_s:
        call.notes.warnings.append("chunk_length_s changes nothing, because this model reads long audio in its windows")
    return call


def wish_of(parameters: SpeechParameters, model: TaskModel) -> TranscriptWish:
    """Return what is asked of each file. Raises ValidationFailed."""
    generates = bool(model.facts.languages)
    timestamps = _timestamps(parameters.return_timestamps, generates=generates)
    generation = _merged(parameters)
    if generates:
        return _generated(timestamps, generation, model)
    for name in ("language", "task", "max_new_tokens", "num_beams"):
        if getattr(generation, name) is not None:
            raise ValidationFailed(
                f"`parameters.{name}` is of models that generate, and this one gives a character at each step; leave "
                "the field out",
                field=f"parameters.{name}",
            )
    chunk_s, stride_s = _chunks(parameters)
    return TranscriptWish(timestamps, chunk_s=chunk_s, stride_s=stride_s)


def _merged(parameters: SpeechParameters) -> SpeechGeneration:
    """Return the fields of generation, of which those in an inner object win over those beside."""
    merged = SpeechGeneration()
    for source in (parameters, parameters.generate_kwargs, parameters.generation_parameters):
        for name in SpeechGeneration.__struct_fields__:
            value = None if source is None else getattr(source, name)
            if value is not None:
                setattr(merged, name, value)
    asked = {
        "do_sample": merged.do_sample,
        "temperature": merged.temperature not in (None, 0.0, 1.0),
        "top_k": merged.top_k,
        "top_p": merged.top_p not in (None, 1.0),
    }
    for name in (name for name, is_asked in asked.items() if is_asked):
        raise ValidationFailed(
            f"`parameters.{name}` asks for sampling, and the words of speech are searched; leave the field out",
            field=f"parameters.{name}",
        )
    return merged


def _timestamps(asked: bool | str | None, *, generates: bool) -> Timestamps:
    if asked in _NO_WORDS:
        return Timestamps.NONE
    if asked == "word":
        return Timestamps.WORDS
    wanted = 'true, false or "word"' if generates else 'false, "word" or "char"'
    if asked in _SEGMENT_WORDS and generates:
        return Timestamps.SEGMENTS
    if asked == "char" and not generates:
        return Timestamps.CHARACTERS
    raise ValidationFailed(
        f"`parameters.return_timestamps` must be {wanted} for this model, found {str(asked)[:32]!r}",
        field="parameters.return_timestamps",
    )


def _generated(timestamps: Timestamps, asked: SpeechGeneration, model: TaskModel) -> TranscriptWish:
    """Return what is asked of a model that generates."""
    language = "" if asked.language is None else language_of(asked.language, model, field="parameters.language")
    translates = asked.task == "translate"
    if translates:
        check_translates(model, field="parameters.task")
    return TranscriptWish(
        timestamps,
        language,
        translates,
        max_new_tokens=_whole("max_new_tokens", asked.max_new_tokens, MAX_TOKENS),
        num_beams=_whole("num_beams", asked.num_beams, MAX_BEAMS),
    )


def _whole(name: str, value: int | None, most: int) -> int:
    """Return a whole number from 1 on, 0 where there is none. Raises ValidationFailed."""
    if value is not None and not 1 <= value <= most:
        raise ValidationFailed(
            f"`parameters.{name}` must be from 1 to {most}, found {value}", field=f"parameters.{name}"
        )
    return value or 0


def check_translates(model: TaskModel, *, field: str) -> None:
    """Raise ValidationFailed for a model that knows no other language than English."""
    if set(model.facts.languages) <= _ENGLISH:
        what = f"`{field}` must be transcribe" if field else "nothing can be translated"
        raise ValidationFailed(f"{what}, because this model knows English alone", field=field)


def language_of(name: str, model: TaskModel, *, field: str) -> str:
    """Return a code or an English name as the shard knows the language. Raises ValidationFailed."""
    wanted = name.strip().lower().removeprefix("<|").removesuffix("|>")
    if wanted in model.facts.languages:
        return wanted
    some = ", ".join(model.facts.languages[:20])
    raise ValidationFailed(
        f"`{field}` must be a language of this model, such as {some}; found {name[:32]!r}",
        field=field,
    )


def _chunks(parameters: SpeechParameters) -> tuple[float, float]:
    """Return the seconds of chunks and strides that are asked for."""
    chunk_s, stride_s = parameters.chunk_length_s, parameters.stride_length_s
    if isinstance(stride_s, list):
        if len(stride_s) != 2 or stride_s[0] != stride_s[1]:
            raise ValidationFailed(
                "`parameters.stride_length_s` must be a number, or two equal ones", field="parameters.stride_length_s"
            )
        stride_s = stride_s[0]
    if chunk_s and not MIN_CHUNK_S <= chunk_s <= MAX_CHUNK_S:
        raise ValidationFailed(
            f"`parameters.chunk_length_s` must be from {MIN_CHUNK_S:g} to {MAX_CHUNK_S:g}, or 0 for "
            f"{DEFAULT_CHUNK_S:g}, found {chunk_s}",
            field="parameters.chunk_length_s",
        )
    # A tenth of each chunk is new, so that the number of chunks of a long recording is bounded.
    most_s = rounded32(chunk_s or DEFAULT_CHUNK_S) * MAX_STRIDE
    if stride_s is not None and not (stride_s >= 0.0 and rounded32(stride_s) <= most_s):
        raise ValidationFailed(
            f"`parameters.stride_length_s` must be at most {MAX_STRIDE:g} of a chunk, {most_s:g} s, found {stride_s}",
            field="parameters.stride_length_s",
        )
    if stride_s is None:
        return chunk_s or 0.0, 0.0
    return chunk_s or DEFAULT_CHUNK_S, max(stride_s, NO_STRIDE_S)


def seconds_of(value: float) -> float:
    """Return a time without the digits that 32-bit floats add; times have steps of 0.02 s or of less than 1 ms."""
    return round(value, 4)
