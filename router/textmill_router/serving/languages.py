"""The languages of models that translate between many: which token names a language, and where this token stands.

The text that the encoder reads names its own language, and the first token of the answer names the other one. Where the
token stands beside the text is decided by the class of the tokenizer, as in transformers.
"""

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from textmill_router.request import token_array
from textmill_router.text.tokenization import Tokenizer
from textmill_router.text.tokenizer_files import CONFIG_NAME, read_json_object

# By class of the tokenizer: the form of its codes, and whether the language stands before the text.
_CODE = re.compile(r"([a-z]{2,3}_[A-Z][A-Za-z]{1,3})")
_CLASSES: Mapping[str, tuple[re.Pattern[str], bool]] = {
    "NllbTokenizer": (_CODE, True),
    "MBartTokenizer": (_CODE, False),
    "MBart50Tokenizer": (_CODE, True),
    "M2M100Tokenizer": (re.compile(r"__([a-z]{2,3})__"), True),
}


@dataclass(frozen=True, slots=True)
class LanguageCodes:
    """The codes of a model with their token ids. `leads`: a language stands before its text, not behind its end."""

    ids: Mapping[str, int]
    leads: bool
    end_id: int

    def ends(self, source: str) -> "TextEnds":
        """Return what stands beside a text of this language."""
        language = self.ids[source]
        if self.leads:
            return TextEnds(token_array((language,)), token_array((self.end_id,)))
        return TextEnds(token_array(()), token_array((self.end_id, language)))


@dataclass(frozen=True, slots=True)
class TextEnds:
    """The special tokens before and behind a text, in the place of those that the tokenizer would add."""

    before: "array[int]"
    behind: "array[int]"


def read_language_pair(folder: Path) -> list[str]:
    """Return the pair of languages that the tokenizer of a folder names, as `en_to_de` (Marian); else nothing."""
    path = folder / CONFIG_NAME
    config = read_json_object(path) if path.is_file() else {}
    source, target = config.get("source_lang"), config.get("target_lang")
    return [f"{source}_to_{target}"] if isinstance(source, str) and isinstance(target, str) else []


def read_language_codes(folder: Path, tokenizer: Tokenizer) -> LanguageCodes | None:
    """Return the codes of the model of a folder; None for a model whose tokenizer has no languages."""
    config = read_json_object(folder / CONFIG_NAME)
    name = config.get("tokenizer_class")
    known = _CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    if known is None:
        return None
    pattern, leads = known
    if config.get("legacy_behaviour") is True:  # of NLLB, whose first tokenizers had the language behind the text
        leads = False
    ids: dict[str, int] = {}
    end_id = None
    for token_id in tokenizer.special_ids:
        text = tokenizer.id_to_text(token_id)
        found = pattern.fullmatch(text)
        if found is not None:
            ids[found[1]] = token_id
        if text == tokenizer.eos_token:
            end_id = token_id
    return LanguageCodes(ids, leads, end_id) if ids and end_id is not None else None
