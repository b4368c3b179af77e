"""A tokenizer.json is made once, in the cache, whole or not at all; what cannot be made is refused by name."""

import json
import os
import threading
from pathlib import Path

import pytest
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader import tokenizer_convert
from textmill_shard.loader.tokenizer_convert import convert_tokenizer

from tests.fakes.vocabulary_files import train_sentencepiece, write_byte_pieces, write_family


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_the_folder_of_the_cache_has_the_model_and_the_tokenizer(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "bert")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    made = convert_tokenizer(folder, tmp_path / "cache")
    assert made.parent == tmp_path / "cache" / "tokenizers"
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors", "1_Pooling"} <= _names(made)
    assert "special_tokens_map.json" not in _names(made), "its tokens stand in tokenizer_config.json"
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert (made / "1_Pooling" / "config.json").read_text() == "{}"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_nobody_may_write_is_converted(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "t5")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        made = convert_tokenizer(folder, tmp_path / "cache")
    finally:
        folder.chmod(0o700)
    assert _names(folder) == {"config.json", "spiece.model", "tokenizer_config.json"}
    assert (made / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_second_start_takes_what_is_there_and_a_change_makes_another(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "bert")
    first = convert_tokenizer(folder, tmp_path / "cache")
    made_at = (first / "tokenizer.json").stat().st_mtime_ns
    assert convert_tokenizer(folder, tmp_path / "cache") == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == made_at
    with (folder / "vocab.txt").open("a") as stream:
        stream.write("\nnew")
    changed = convert_tokenizer(folder, tmp_path / "cache")
    assert changed != first
    assert '"new"' in (changed / "tokenizer.json").read_text()
    (folder / "model.safetensors").write_bytes(b"weights")
    assert (convert_tokenizer(folder, tmp_path / "cache") / "model.safetensors").exists()


@pytest.mark.parametrize("harm", ["cut", "gone", "unmarked"])
def test_a_folder_of_the_cache_that_is_not_whole_is_made_anew(tmp_path: Path, harm: str) -> None:
    folder = write_family(tmp_path / "model", "bert")
    made = convert_tokenizer(folder, tmp_path / "cache")
    whole = (made / "tokenizer.json").read_text()
    if harm == "cut":
        (made / "tokenizer.json").write_text(whole[:100])
    elif harm == "gone":
        (made / "tokenizer.json").unlink()
    else:
        (made / ".tokenizer-digest").unlink()
    assert convert_tokenizer(folder, tmp_path / "cache") == made
    assert (made / "tokenizer.json").read_text() == whole


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path / "model", "bert")

    def full_disk(made: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tokenizer_convert.os, "rename", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert_tokenizer(folder, tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokenizers").iterdir()) == []


def test_two_that_start_at_once_share_one_folder(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "bert")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(convert_tokenizer(folder, tmp_path / "c"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert len(list((tmp_path / "c" / "tokenizers").iterdir())) == 1


def _write(folder: Path, model_type: str, **config: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))


def test_a_vocabulary_that_its_class_reads_otherwise_is_refused(tmp_path: Path) -> None:
    """transformers 5.23 reads the pieces of FNet as merges, and lets the first space of an unnamed Llama fall away."""
    _write(tmp_path, "fnet")
    train_sentencepiece(tmp_path / "spiece.model", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1)
    with pytest.raises(ModelFilesError, match=r"FNetTokenizer .* does not read spiece.model as SentencePiece does"):
        convert_tokenizer(tmp_path, tmp_path / "cache")
    _write(tmp_path, "llama")
    train_sentencepiece(tmp_path / "tokenizer.model", "bpe", vocab_size=600, byte_fallback=True)
    with pytest.raises(ModelFilesError, match="tokenizer_class"):
        convert_tokenizer(tmp_path, tmp_path / "cache")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    assert (convert_tokenizer(tmp_path, tmp_path / "cache") / "tokenizer.json").is_file()


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 200, b'{"a": 1}'])
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    _write(tmp_path, "t5")
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ModelFilesError, match=r"can be made|is no SentencePiece model"):
        convert_tokenizer(tmp_path, tmp_path / "cache")


def test_a_tokenizer_without_a_fast_form_is_refused_by_name(tmp_path: Path) -> None:
    _write(tmp_path, "plbart")
    train_sentencepiece(tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(ModelFilesError, match="PLBartTokenizer"):
        convert_tokenizer(tmp_path, tmp_path / "cache")


def test_a_folder_that_names_no_type_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "of-nobody")
    write_byte_pieces(tmp_path, ("</s>",))
    with pytest.raises(ModelFilesError, match="can be made"):
        convert_tokenizer(tmp_path, tmp_path / "cache")
