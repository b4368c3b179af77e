"""Transcripts as subtitles: SubRip (srt) and WebVTT (https://www.w3.org/TR/webvtt1/)."""

from collections.abc import Iterator, Sequence

from textmill_router.tasks.row_results import TranscriptPart

# In WebVTT these characters begin a tag or a reference.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def subrip(parts: Sequence[TranscriptPart], duration_s: float) -> str:
    """Return a file of SubRip: numbered cues. A part without an end goes to the end of the audio."""
    cues = enumerate(_cues(parts, duration_s, point=","), start=1)
    return "".join(f"{number}\n{times}\n{text}\n\n" for number, (times, text) in cues)


def web_vtt(parts: Sequence[TranscriptPart], duration_s: float) -> str:
    """Return a file of WebVTT. A part without an end goes to the end of the audio."""
    cues = _cues(parts, duration_s, point=".")
    return "WEBVTT\n\n" + "".join(f"{times}\n{text.translate(_ESCAPES)}\n\n" for times, text in cues)


def _cues(parts: Sequence[TranscriptPart], duration_s: float, *, point: str) -> Iterator[tuple[str, str]]:
    """Yield the times and the text of each part that says something. A text is one line, as a blank line ends a cue."""
    for part in parts:
        text = " ".join(part.text.split())
        end_s = max(part.start_s, duration_s) if part.end_s is None else part.end_s
        if text:
            yield f"{_time(part.start_s, point)} --> {_time(end_s, point)}", text


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
