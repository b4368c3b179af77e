"""Headers of GGUF files, and models in several files."""

from pathlib import Path

import gguf
import numpy
import pytest
from safetensors.torch import load_file
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_cache import convert_gguf
from textmill_shard.loader.gguf_header import read_header
from textmill_shard.loader.gguf_parts import read_parts

from tests.fakes.tiny_gguf import write_tiny_gguf


def split(whole: Path, folder: Path, *, count: int, claimed: int | None = None) -> list[Path]:
    """Write the file in parts, as llama.cpp's gguf-split does: all values in the first, the tensors in turns."""
    folder.mkdir(exist_ok=True)
    header = read_header(whole)
    tensors = gguf.GGUFReader(whole).tensors
    paths = [folder / f"tiny-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, header.architecture)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", claimed or len(tensors))
        if number == 0:
            for key, field in gguf.GGUFReader(whole).fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
        for tensor in tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_values_and_tensors_are_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    header, reader = read_header(tmp_path / "tiny.gguf"), gguf.GGUFReader(tmp_path / "tiny.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.values == fields
    assert header.architecture == "llama"
    assert header.of_model()["block_count"] == fields["llama.block_count"]
    found = [(tensor.name, header.data_start + tensor.offset, tensor.size, tensor.shape) for tensor in header.tensors]
    assert found == [
        (tensor.name, tensor.data_offset, tensor.n_bytes, tuple(tensor.shape[::-1].tolist()))
        for tensor in reader.tensors
    ]


@pytest.mark.parametrize("given", [0, 2])
def test_any_part_of_a_model_is_read_with_the_others(tmp_path: Path, given: int) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    parts = split(tmp_path / "tiny.gguf", tmp_path / "parts", count=3)
    whole = load_file(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "one", "float32") / "model.safetensors")
    folder = convert_gguf(parts[given], tmp_path / "many", "float32")
    joined = load_file(folder / "model.safetensors")
    assert joined.keys() == whole.keys()
    assert all(joined[name].equal(whole[name]) for name in whole)
    assert convert_gguf(parts[1 - given // 2], tmp_path / "many", "float32") == folder


def test_parts_that_are_not_there_or_do_not_fit_are_named(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    first, second, third = split(tmp_path / "tiny.gguf", tmp_path / "parts", count=3)
    second.rename(tmp_path / "kept")
    with pytest.raises(ModelFilesError, match=r"one of the 3 files of a model, and tiny-00002-of-00003\.gguf is not"):
        read_parts(first)
    third.rename(second)
    (tmp_path / "kept").rename(third)
    with pytest.raises(ModelFilesError, match=r"00002-of-00003\.gguf is not part 2 of 3"):
        read_parts(first)
    alone = first.rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelFilesError, match=r"one of 3 files of a model \(split\.count\): call them NAME-00001-of"):
        read_parts(alone)
    named = (tmp_path / "tiny.gguf").rename(tmp_path / "tiny-00001-of-00002.gguf")
    with pytest.raises(ModelFilesError, match=r"a part of a model in 2 files, and has no split\.count"):
        read_parts(named)
    others = split(named, tmp_path / "others", count=2, claimed=50)
    with pytest.raises(ModelFilesError, match="hold 21 tensors, 50 are wanted"):
        read_parts(others[0])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.05, 0.5, 0.99])
def test_a_file_that_is_cut_short_says_so(tmp_path: Path, share: float) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[: max(5, int(len(content) * share))])
    with pytest.raises(ModelFilesError, match=r"(broken header|is cut short).*fetch it again"):
        read_header(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("at", "changed", "words"),
    [
        (4, b"\x01", "version 1, versions 2 and 3"),
        (7, b"\x03", "little endian"),
        (8, b"\xff\xff\xff\xff\xff", "broken header"),
        (16, b"\xff\xff", "broken header"),
        (24, b"\xff\xff\xff\xff\xff\xff\xff\xff", "broken header"),
        (32, b"\xff\xff", "broken header"),
    ],
)
def test_a_damaged_header_says_so(tmp_path: Path, at: int, changed: bytes, words: str) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    content = bytearray((tmp_path / "tiny.gguf").read_bytes())
    content[at : at + len(changed)] = changed
    (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(ModelFilesError, match=words):
        read_header(tmp_path / "tiny.gguf")


def test_tensors_of_a_form_that_nobody_knows_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("blk.0.odd.weight", numpy.zeros((2, 2), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = (tmp_path / "odd.gguf").read_bytes()
    at = content.index(b"blk.0.odd.weight") + len("blk.0.odd.weight") + 4 + 16
    (tmp_path / "odd.gguf").write_bytes(content[:at] + b"\x63" + content[at + 1 :])
    with pytest.raises(ModelFilesError, match=r"holds blk\.0\.odd\.weight in the form 99"):
        read_header(tmp_path / "odd.gguf")
