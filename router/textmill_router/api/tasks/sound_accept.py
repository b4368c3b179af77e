"""Which format of audio the header `accept` of a call asks for."""

from starlette.types import Scope

from textmill_router.http.json_body import header_of
from textmill_router.tasks.wishes import SoundFormat

_FORMATS = {
    "audio/flac": SoundFormat.FLAC,
    "audio/x-flac": SoundFormat.FLAC,
    "audio/wav": SoundFormat.WAV,
    "audio/x-wav": SoundFormat.WAV,
    "audio/wave": SoundFormat.WAV,
    "audio/vnd.wave": SoundFormat.WAV,
    "audio/ogg": SoundFormat.OGG,
    "audio/vorbis": SoundFormat.OGG,
    "audio/mpeg": SoundFormat.MP3,
    "audio/mp3": SoundFormat.MP3,
}


def sound_format_of(scope: Scope) -> SoundFormat | None:
    """Return the format that the client likes best, FLAC where the client does not say, or None where none fits.

    A client that names no type of audio at all, as one that accepts JSON, does not say.
    """
    wishes = [_wish(part) for part in (header_of(scope, b"accept") or b"").decode("latin-1").split(",")]
    wanted = [(share, kind) for kind, share in wishes if kind.startswith("audio/") and share > 0.0]
    liked = sorted(wanted, key=lambda wish: -wish[0])  # of equal shares the first
    for _, kind in liked:
        if kind == "audio/*":
            return SoundFormat.FLAC
        if kind in _FORMATS:
            return _FORMATS[kind]
    takes_any = not wanted or any(kind == "*/*" and share > 0.0 for kind, share in wishes)
    return SoundFormat.FLAC if takes_any else None


def _wish(part: str) -> tuple[str, float]:
    """Return a type and its share `q`, which is 1 without one, and 0 where it is no number."""
    kind, *parameters = (each.strip().lower() for each in part.split(";"))
    share = next((each.removeprefix("q=") for each in parameters if each.startswith("q=")), "1")
    try:
        return kind, float(share)
    except ValueError:
        return kind, 0.0
