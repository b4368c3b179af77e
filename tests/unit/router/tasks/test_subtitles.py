"""Subtitles against the text that the formats' descriptions show."""

from textmill_router.tasks.row_results import TranscriptPart
from textmill_router.tasks.subtitles import subrip, web_vtt

PARTS = (
    TranscriptPart(" Good morning,\n everybody.", 0.0, 1.5),
    TranscriptPart("  ", 1.5, 2.0),
    TranscriptPart(" a < b & c --> d", 3661.0004, None),
)


def test_cues_of_subrip_are_numbered_and_have_commas() -> None:
    assert subrip(PARTS, 3700.25) == (
        "1\n00:00:00,000 --> 00:00:01,500\nGood morning, everybody.\n\n"
        "2\n01:01:01,000 --> 01:01:40,250\na < b & c --> d\n\n"
    )


def test_cues_of_webvtt_have_points_and_no_markup() -> None:
    assert web_vtt(PARTS, 3700.25) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nGood morning, everybody.\n\n"
        "01:01:01.000 --> 01:01:40.250\na &lt; b &amp; c --&gt; d\n\n"
    )


def test_nothing_said_is_a_file_without_cues() -> None:
    assert subrip((), 1.0) == ""
    assert web_vtt((), 1.0) == "WEBVTT\n\n"


def test_a_part_never_ends_before_its_beginning() -> None:
    assert "00:00:05,000 --> 00:00:05,000" in subrip((TranscriptPart("late", 5.0, None),), 4.0)
