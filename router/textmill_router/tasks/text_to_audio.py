"""text-to-audio, which text-to-speech is another name for, and OpenAI's route /v1/audio/speech."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, SoundAnswer
from textmill_router.tasks.rows import StringRow
from textmill_router.tasks.wishes import SoundFormat, SoundWish

TASK = "text-to-audio"
MAX_CHARACTERS = 4096
MIN_RATE, MAX_RATE, MAX_NOISE = 0.25, 4.0, 10.0
SEED_BOUND = 1 << 64
MEDIA_TYPES = {
    SoundFormat.FLAC: b"audio/flac",
    SoundFormat.WAV: b"audio/wav",
    SoundFormat.OGG: b"audio/ogg",
    SoundFormat.MP3: b"audio/mpeg",
    SoundFormat.OPUS: b"audio/opus",
    SoundFormat.PCM: b"audio/pcm",
}
_OPENAI_FORMATS = ("mp3", "opus", "flac", "wav", "pcm")


class SpokenParameters(msgspec.Struct, gc=False):
    """The parameters of text-to-audio. The model's files decide where there is none."""

    seed: int | None = None
    speaker_id: int | None = None
    speaking_rate: float | None = None
    noise_scale: float | None = None
    noise_scale_duration: float | None = None


class SpokenBody(msgspec.Struct, gc=False):
    """The body of text-to-audio. A list as `inputs` stands here to be refused."""

    inputs: str | list[Any]
    parameters: SpokenParameters | None = None


class VoiceId(msgspec.Struct, gc=False):
    """A voice as an object."""

    id: str


class SpeechRequest(msgspec.Struct, gc=False):
    """The body of OpenAI's /v1/audio/speech. Fields that nothing can be done with stand here to be refused."""

    input: str
    model: str | None = None
    voice: str | int | VoiceId | None = None
    response_format: str | None = None
    speed: float | None = None
    seed: int | None = None
    instructions: str | None = None
    stream_format: str | None = None


@dataclass(slots=True)
class SpokenCall:
    """A call of one text, whose answer is a file of audio."""

    text: str
    wish: SoundWish
    path: str
    notes: CallNotes
    task: str = TASK
    num_rows: int = 1

    @property
    def num_characters(self) -> int:
        return len(self.text)

    async def rows(self) -> list[StringRow]:
        return [StringRow(self.text, self.wish, self.path)]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        (found,) = results
        assert isinstance(found, SoundAnswer)
        return Answer(found.file, media_type=MEDIA_TYPES[self.wish.sound_format])


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of a call that have bounds, by the names that the body gives them."""

    values: dict[str, float | None] = field(default_factory=dict)

    def check(self, low: float, high: float) -> None:
        for name, value in self.values.items():
            if value is not None and not low <= value <= high:
                raise ValidationFailed(f"`{name}` must be from {low:g} to {high:g}, found {value:g}", field=name)


def text_to_audio_call(body: SpokenBody, model: TaskModel, shapes: ClientShapes) -> SpokenCall:
    """Apply the rules of text-to-audio. Raises ValidationFailed."""
    asked = body.parameters or SpokenParameters()
    if shapes.sound_format is None:
        raise ValidationFailed("the header accept must name audio/flac, audio/wav, audio/ogg or audio/mpeg")
    if isinstance(body.inputs, list):
        raise ValidationFailed(
            f"`inputs` must be one text, because the answer is one file of audio, found a list of {len(body.inputs)}; "
            "send a call for each text",
            field="inputs",
        )
    _check_text(body.inputs, "inputs")
    _Numbers({"parameters.speaking_rate": asked.speaking_rate}).check(MIN_RATE, MAX_RATE)
    noise = {"noise_scale": asked.noise_scale, "noise_scale_duration": asked.noise_scale_duration}
    _Numbers({f"parameters.{name}": value for name, value in noise.items()}).check(0.0, MAX_NOISE)
    seed = _seed(asked.seed, "parameters.seed")
    wish = SoundWish(
        shapes.sound_format,
        seed,
        _speaker(asked.speaker_id or 0, model, "parameters.speaker_id"),
        asked.speaking_rate,
        asked.noise_scale,
        asked.noise_scale_duration,
    )
    has_noise = asked.noise_scale != 0 or asked.noise_scale_duration != 0
    return SpokenCall(body.inputs, wish, "inputs", _notes(asked.seed, has_noise=has_noise))


def speech_request_call(body: SpeechRequest, model: TaskModel, shapes: ClientShapes) -> SpokenCall:
    """Apply the rules of /v1/audio/speech. Raises ValidationFailed."""
    _check_text(body.input, "input")
    response_format = "mp3" if body.response_format is None else body.response_format
    if response_format not in _OPENAI_FORMATS:
        raise ValidationFailed(
            f"`response_format` must be one of {', '.join(_OPENAI_FORMATS)}, found {response_format[:32]!r}",
            field="response_format",
        )
    _Numbers({"speed": body.speed}).check(MIN_RATE, MAX_RATE)
    if body.instructions:
        raise ValidationFailed(
            "`instructions` must be left out, because this model speaks in one way", field="instructions"
        )
    if body.stream_format not in (None, "audio"):
        raise ValidationFailed("`stream_format` must be audio, because speech is answered whole", field="stream_format")
    wish = SoundWish(
        SoundFormat(response_format),
        _seed(body.seed, "seed"),
        _voice(body.voice, model),
        speed=1.0 if body.speed is None else body.speed,
    )
    return SpokenCall(body.input, wish, "input", _notes(body.seed, has_noise=True))


def _notes(seed: int | None, *, has_noise: bool) -> CallNotes:
    return CallNotes(is_repeatable=seed is not None or not has_noise)


def _check_text(text: str, path: str) -> None:
    if not text.strip():
        raise ValidationFailed(f"`{path}` must not be empty", field=path)
    if len(text) > MAX_CHARACTERS:
        raise ValidationFailed(
            f"`{path}` has {len(text)} characters, and at most {MAX_CHARACTERS} are spoken; send a shorter text",
            field=path,
        )


def _seed(asked: int | None, path: str) -> int:
    """Return the seed that is asked for, or a new one."""
    if asked is None:
        return random.getrandbits(63)
    if not 0 <= asked < SEED_BOUND:
        raise ValidationFailed(f"`{path}` must be from 0 to 2^64 - 1, found {asked}", field=path)
    return asked


def _speaker(number: int, model: TaskModel, path: str) -> int:
    most = model.facts.num_speakers
    if not 0 <= number < most:
        raise ValidationFailed(
            f"`{path}` must be the number of one of the {most} voices of this model, 0 to {most - 1}, found {number}"
            if most > 1
            else f"`{path}` must be 0, because this model has one voice, found {number}",
            field=path,
        )
    return number


def _voice(voice: str | int | VoiceId | None, model: TaskModel) -> int:
    """Return the number of a voice. Clients must send a name, and a model of one voice has that under any name."""
    name = voice.id if isinstance(voice, VoiceId) else voice
    if model.facts.num_speakers == 1 or name is None:
        return 0
    if isinstance(name, str) and not (name.isascii() and name.isdigit() and len(name) < 10):
        most = model.facts.num_speakers - 1
        raise ValidationFailed(
            f"`voice` must be the number of one of this model's voices, 0 to {most}, because its files have no names "
            f"for voices; found {name[:32]!r}",
            field="voice",
        )
    return _speaker(int(name), model, "voice")
