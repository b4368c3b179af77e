"""Writes the vocabulary files of model folders that have no tokenizer.json, as the families publish them."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A model that reads texts must cut them as its training did; naïve cafés do not.",
    "In the morning she went to the market and bought bread, 12 eggs and 3.5 pounds of rice.",
    "Die Straße führt über die Brücke nach Süden. Größe ist nicht alles!",
    "Η Ελλάδα είναι όμορφη. Москва зимой холодная. Сегодня хорошая погода.",
    "東京の天気は晴れです。言葉は文化です。天気がいい。",
    "서울은 맑음 שלום עולם हिन्दी में लिखा",
    "one two three four five six seven eight nine ten eleven twelve thirteen",
)
# Texts with spaces, marks, other scripts, forms that normalisation changes, and what no vocabulary knows.
TEXTS = (
    "The lazy fox",
    "  two   spaces and a tail  ",
    "Die Straße nach Süden, naïve cafés!",
    "Η Ελλάδα и Москва зимой",
    "東京の天気は晴れです。",
    "서울은 맑음 שלום हिन्दी",
    "a line\nbreak\tand a tab, 1,234.5",
    "\N{LATIN SMALL LIGATURE FI}ne \N{CIRCLED DIGIT ONE} e\N{COMBINING ACUTE ACCENT}clair \N{ZERO WIDTH JOINER}x",
    "\N{GRINNING FACE}\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5} \N{RUNIC LETTER FEHU FEOH FE F} no piece",
    "half <mask> and </s> of [MASK] one <unk>",
    "▁marks▁",
    " ",
    "",
)


def train_sentencepiece(path: Path, kind: str = "unigram", *, vocab_size: int = 320, **settings: Any) -> Path:
    """Write a SentencePiece model, and return its path."""
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 8),
            model_writer=stream,
            model_type=kind,
            vocab_size=vocab_size,
            character_coverage=0.98,  # so that some characters are unknown
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )
    return path


def write_word_pieces(path: Path, special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) -> None:
    """Write a vocab.txt of letters, their forms inside a word, and some words."""
    letters = sorted({letter for sentence in SENTENCES for letter in sentence.lower() if not letter.isspace()})
    words = ["the", "quick", "fox", "##ing", "##s", "model"]
    path.write_text("\n".join([*special, *letters, *(f"##{letter}" for letter in letters), *words]), encoding="utf-8")


def write_byte_pieces(folder: Path, special: tuple[str, ...], *, vocab_size: int = 380) -> None:
    """Write vocab.json and merges.txt of a byte-level vocabulary that begins with the special tokens."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(SENTENCES, trainer)
    library.model.save(str(folder))


def write_family(folder: Path, family: str) -> Path:
    """Write the config and the vocabulary of a family, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": {"nllb": "m2m_100"}.get(family, family)}
    match family:
        case "bert":
            write_word_pieces(folder / "vocab.txt")
        case "roberta":
            write_byte_pieces(folder, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
        case "gpt2":
            write_byte_pieces(folder, ("<|endoftext|>",))
        case "t5":
            train_sentencepiece(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        case "albert":
            ends = ["[CLS]", "[SEP]", "[MASK]"]
            train_sentencepiece(folder / "spiece.model", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=ends)
        case "xlm-roberta" | "mbart":
            train_sentencepiece(folder / "sentencepiece.bpe.model")
        case "nllb":
            config["tokenizer_class"] = "NllbTokenizer"
            train_sentencepiece(folder / "sentencepiece.bpe.model", "bpe")
        case _:
            raise AssertionError(family)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
