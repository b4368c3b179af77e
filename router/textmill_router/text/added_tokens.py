"""Tokens that the files beside tokenizer.json name, added to the tokenizer in transformers' order.

These files are tokenizer_config.json, special_tokens_map.json and added_tokens.json. The rules are those by which
transformers 5.23 loads a tokenizer.json: `added_tokens_decoder` of tokenizer_config.json, where it is there, stands
for both other files. A token gets the id that the vocabulary has for its text, or else the next free id.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

NAMED_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA, _ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
_PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """Special tokens of the files.

    `by_key` has `bos_token` and the like, `others` have no key of their own. `legacy` are those that only
    `additional_special_tokens` of special_tokens_map.json names; transformers does not look at these where it decides
    whether a token of added_tokens.json is special.
    """

    by_key: Mapping[str, AddedToken]
    others: tuple[AddedToken, ...]
    legacy: tuple[AddedToken, ...]

    @property
    def texts(self) -> dict[str, str]:
        """Texts by key, as chat templates name them."""
        return {key: token.content for key, token in self.by_key.items()}


def named_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> NamedTokens:
    """Return the special tokens of tokenizer_config.json and special_tokens_map.json (`special_map`).

    Raises ValueError for a token with properties that no token has.
    """
    if "added_tokens_decoder" in config:
        special_map = {}
    values = {**config, **special_map}
    keys = [*NAMED_KEYS, *(key for key in values if key.endswith("_token") and key not in NAMED_KEYS)]
    keyed: dict[str, object] = {key: values[key] for key in keys if key in values}
    others: list[object] = []
    for entry in (config.get(_EXTRA) or config.get(_ADDITIONAL), special_map.get(_EXTRA)):
        if isinstance(entry, dict):
            keyed |= entry
        elif isinstance(entry, list):
            others += entry
    legacy = special_map.get(_ADDITIONAL) if not others else None
    by_key = {key: token for key, value in keyed.items() if (token := _special_token(value)) is not None}
    return NamedTokens(by_key, _special_tokens(others), _special_tokens(legacy if isinstance(legacy, list) else []))


def add_tokens(
    library: tokenizers.Tokenizer, config: Mapping[str, Any], added: Mapping[str, Any], named: NamedTokens
) -> None:
    """Add what tokenizer_config.json, added_tokens.json (`added`) and the named tokens say.

    A token of the tokenizer that is named here becomes special. Raises ValueError for entries that are no tokens.
    """
    listed = _listed_tokens(library, config, added, named)
    keyed_texts = set(named.texts.values())
    for token in listed:
        token.special = token.special or token.content in keyed_texts
    texts = {token.content for token in [*library.get_added_tokens_decoder().values(), *listed]}
    further = [*named.by_key.values(), *named.others, *named.legacy]
    more = {token.content: token for token in further if token.content not in texts}
    library.add_tokens([token for token in [*listed, *more.values()] if token.content])


def _listed_tokens(
    library: tokenizers.Tokenizer, config: Mapping[str, Any], added: Mapping[str, Any], named: NamedTokens
) -> list[AddedToken]:
    """Return the tokens that the files list with an id, in the order of the ids."""
    if "added_tokens_decoder" in config:
        entries = config["added_tokens_decoder"]
        if not isinstance(entries, dict):
            raise ValueError("`added_tokens_decoder` is not an object")
        by_id = {int(token_id): _listed_token(entry) for token_id, entry in entries.items()}
        return [by_id[token_id] for token_id in sorted(by_id)]
    special_texts = {token.content for token in (*named.by_key.values(), *named.others)}
    by_id = {}
    for text, token_id in added.items():
        is_special = text in special_texts
        by_id[int(token_id)] = AddedToken(text, special=is_special, normalized=not is_special)
    by_id |= library.get_added_tokens_decoder()
    return [by_id[token_id] for token_id in sorted(by_id)]


def _listed_token(entry: object) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ValueError(f"`added_tokens_decoder` has an entry without `content`: {entry!r}")
    return AddedToken(entry["content"], **_properties(entry))


def _special_token(value: object) -> AddedToken | None:
    """Return the token of a string or of an object with `content`; None for everything else."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return AddedToken(value["content"], **{**_properties(value), "special": True})
    return None


def _special_tokens(values: Iterable[object]) -> tuple[AddedToken, ...]:
    return tuple(token for value in values if (token := _special_token(value)) is not None)


def _properties(entry: Mapping[str, Any]) -> dict[str, bool]:
    properties = {name: entry[name] for name in _PROPERTIES if name in entry}
    wrong = next((name for name, value in properties.items() if not isinstance(value, bool)), None)
    if wrong is not None:
        raise ValueError(f"the token {entry['content']!r} has {wrong} {entry[wrong]!r}, wanted true or false")
    return properties
