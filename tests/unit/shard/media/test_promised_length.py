"""Files of samples that are whole, cut, padded, and that promise what they do not hold."""

import struct

import pytest
from textmill_shard.media.errors import MediaError
from textmill_shard.media.promised_length import UNKNOWN_LENGTHS, check_promised_length, with_written_length

from tests.fakes.hostile_sounds import encode, tone, wav


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("WAV", {}), ("WAVEX", {}), ("RF64", {}), ("AIFF", {}), ("AU", {}), ("WAV", {"endian": "BIG"})),
        *(("WAV", {"subtype": "MS_ADPCM"}), ("WAV", {"subtype": "PCM_24"}), ("AIFF", {"subtype": "FLOAT"})),
    ],
)
def test_each_format_holds_what_it_promises_until_it_is_cut(kind: str, options: dict[str, str]) -> None:
    whole = encode(tone(0.1001), kind, **options)
    check_promised_length(whole)
    check_promised_length(whole + b"\0" * 100)
    for cut in (len(whole) - 4, len(whole) // 2):
        with pytest.raises(MediaError, match="it is cut off, or its header is wrong"):
            check_promised_length(whole[:cut])


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_other_formats_promise_nothing_here(kind: str) -> None:
    check_promised_length(encode(tone(), kind)[:200])


@pytest.mark.parametrize("size", sorted(UNKNOWN_LENGTHS))
def test_an_unknown_length_promises_nothing(size: int) -> None:
    check_promised_length(wav(bytes(100), size=size))
    au = encode(tone(0.1), "AU")
    check_promised_length(au[:8] + struct.pack(">I", size) + au[12:200])


@pytest.mark.parametrize("size", [101, 2**31 - 2, 2**32 - 2])
def test_any_other_length_is_a_promise(size: int) -> None:
    with pytest.raises(MediaError, match=f"promises {size} bytes of samples, and the file holds 100"):
        check_promised_length(wav(bytes(100), size=size))


def test_chunks_before_the_samples_are_passed_over() -> None:
    head = wav(b"")[12:36]
    odd = b"LIST\x05\0\0\0abcde\0"  # a chunk of an odd size is padded
    for held, is_whole in ((10, True), (9, False)):
        file = b"RIFF\0\0\0\0WAVE" + head + odd + b"data" + struct.pack("<I", 10) + bytes(held)
        if is_whole:
            check_promised_length(file)
        else:
            with pytest.raises(MediaError):
                check_promised_length(file)


@pytest.mark.parametrize("data", [b"", b"RIFF", b".snd", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff"])
def test_a_header_that_is_cut_itself_is_left_to_the_reader(data: bytes) -> None:
    check_promised_length(data)


def test_a_length_of_0_is_written_where_samples_follow() -> None:
    whole = wav(bytes(range(100)))
    assert with_written_length(wav(bytes(range(100)), size=0)) == whole[:4] + struct.pack("<I", 36) + whole[8:]
    for size in (0, 0xFFFF_FFFF):
        unknown = b"RIFF" + struct.pack("<I", size) + wav(bytes(range(100)), size=0)[8:]
        assert with_written_length(unknown)[40:] == struct.pack("<I", 100) + bytes(range(100))


def test_further_chunks_behind_no_samples_are_no_samples() -> None:
    chunk = b"LIST\x04\0\0\0abcd"
    file = b"RIFF" + struct.pack("<I", 36 + len(chunk)) + wav(b"")[8:] + chunk
    assert with_written_length(file) is file


def test_other_files_stay_as_they_are() -> None:
    for file in (wav(bytes(100)), wav(b""), wav(bytes(100), size=0xFFFF_FFFF), encode(tone(0.1), "AU"), b"", b"RIFF"):
        assert with_written_length(file) is file
