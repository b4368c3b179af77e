"""Makes a small WordPiece tokenizer in the form of BERT's: words of a list, and letters for all other words."""

import json
import string
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNKNOWN_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
WORDS = (
    "the",
    "a",
    "dog",
    "cat",
    "happy",
    "is",
    "sunny",
    "day",
    "my",
    "name",
    "sarah",
    "london",
    "and",
    "in",
    "i",
    "live",
)


def vocabulary(words: Sequence[str] = WORDS) -> list[str]:
    """Return the tokens by their ids."""
    letters = string.ascii_lowercase + string.digits
    return [*SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters), *".,!?'-{}:;\""]


def make_word_tokenizer(words: Sequence[str] = WORDS) -> tokenizers.Tokenizer:
    """Return the tokenizer, which puts [CLS] and [SEP] around a text and types 0 and 1 on the texts of a pair."""
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary(words)))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_word_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Write tokenizer.json and tokenizer_config.json into the folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_word_tokenizer(words).save(str(folder / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep", "mask")
    config = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
