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

# The languages of facebook/m2m100_418M, in the order of its files.
_CODES = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
    "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
    "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
M2M100_CODES = tuple(_CODES.split())


def train_sentencepiece(
    path: Path,
    kind: str = "unigram",
    *,
    sentences: tuple[str, ...] = SENTENCES,
    vocab_size: int = 320,
    **settings: Any,
) -> Path:
    """Write a SentencePiece model, and return its path."""
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 8),
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


def write_marian(folder: Path) -> int:
    """Write the files of a Marian tokenizer, and return the number of its ids.

    The vocabulary has the pieces of both languages in an order of its own, codes of languages, and not every piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces: set[str] = set()
    for name, sentences in (("source.spm", SENTENCES[:4]), ("target.spm", SENTENCES[3:])):
        path = train_sentencepiece(folder / name, sentences=sentences, vocab_size=150)
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        found = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
        pieces.update(piece for number, piece in enumerate(found) if number % 29 != 7)
    texts = ["</s>", "<unk>", *sorted(pieces, key=lambda piece: (piece[::-1], piece)), ">>de<<", ">>el<<", "<pad>"]
    _write_json(folder / "vocab.json", {text: number for number, text in enumerate(texts)})
    return len(texts)


def write_m2m100(folder: Path) -> int:
    """Write the files of an M2M100 tokenizer, and return the number of its ids with those of languages and no use."""
    folder.mkdir(parents=True, exist_ok=True)
    path = train_sentencepiece(folder / "sentencepiece.bpe.model", "bpe")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    texts = ["<s>", "<pad>", "</s>", "<unk>", *(piece for number, piece in enumerate(pieces) if number % 31 != 5)]
    _write_json(folder / "vocab.json", {text: number for number, text in enumerate(texts)})
    named = {
        "additional_special_tokens": [f"__{code}__" for code in M2M100_CODES],
        "tokenizer_class": "M2M100Tokenizer",
    }
    _write_json(folder / "tokenizer_config.json", named)
    return len(texts) + len(M2M100_CODES) + 8


def write_family(folder: Path, family: str) -> Path:
    """Write the config and the vocabulary of a family, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": {"nllb": "m2m_100"}.get(family, family)}
    match family:
        case "marian":
            write_marian(folder)
        case "m2m_100":
            write_m2m100(folder)
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
    _write_json(folder / "config.json", config)
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
