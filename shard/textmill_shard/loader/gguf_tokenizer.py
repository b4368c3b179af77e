"""From the token list of a GGUF file to tokenizer.json, tokenizer_config.json and chat templates of a model folder.

The list is the law: token i of the file is id i of the tokenizer, whatever its text and its type.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.gguf_header import GgufHeader, read_header
from textmill_shard.loader.gguf_tables import table_of
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

log = logging.getLogger(__name__)

_NAMED_TEMPLATE = "tokenizer.chat_template."
# Types of tokens: ordinary 1, unknown 2, control 3, user defined 4, unused 5, byte 6.
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_BLANK_OF_T5 = re.compile(r"<extra_id_\d+>")
_MAX_NAMES_SHOWN = 5


def write_tokenizer(gguf_file: Path, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates of a GGUF file into a folder.

    Raises ModelFilesError for a tokenizer of an unknown kind, a list that does not fit, and a template whose name can
    be no file's name.
    """
    header = read_header(gguf_file)
    tokens = _tokens(header)
    if header.values.get("tokenizer.ggml.model") == "gpt2":
        library, config = _byte_level(header, tokens)
    else:
        library, config = _read_by_transformers(header)
    check_tokens(library, header)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    template = header.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_further_templates(header, folder)


def check_tokens(library: Tokenizer, header: GgufHeader) -> None:
    """Raises ModelFilesError where the tokenizer has other ids or other special tokens than the file's list."""
    tokens, types = _tokens(header), _types(header)
    vocab = library.get_vocab(with_added_tokens=True)
    found = [library.id_to_token(token_id) for token_id in range(len(tokens))]
    wrong = [token for token, name in zip(tokens, found, strict=True) if not _is_spelling(name, token)]
    wrong += [token for token, token_id in vocab.items() if token_id >= len(tokens)]
    if wrong:
        raise ModelFilesError(
            f"{header.path} has a list of {len(tokens)} tokens, and the tokenizer made of it has {len(vocab)}, with "
            f"other ids for {_shown(wrong)}: serve the model's safetensors and tokenizer.json instead"
        )
    added = library.get_added_tokens_decoder()
    lost = [
        token
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if (kind == _CONTROL and not (token_id in added and added[token_id].special))
        or (kind == _USER_DEFINED and token_id not in added)
    ]
    if lost:
        raise ModelFilesError(
            f"{header.path} marks {_shown(lost)} as tokens that texts are cut at, and the tokenizer made of it does "
            "not: serve the model's safetensors and tokenizer.json instead"
        )


def _byte_level(header: GgufHeader, tokens: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Byte pairs over bytes that are spelt as letters, as GPT-2 began it."""
    pre = _pre_tokenizer(header)
    merges = header.values.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelFilesError(f"{header.path} has no tokenizer.ggml.merges, by which its tokenizer would join bytes")
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = [token for token_id, token in enumerate(tokens) if vocab[token] != token_id]
        raise ModelFilesError(f"{header.path} lists {_shown(twice)} twice in tokenizer.ggml.tokens")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    unknown = [merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2 or "".join(pair) not in vocab]
    if unknown:
        raise ModelFilesError(f"{header.path} has merges that make no token: {_shown(unknown)}")
    with as_model_error(lambda said: ModelFilesError(f"{header.path} has merges that make no tokenizer: {said}")):
        library = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre.takes_whole_words))
    adds_prefix_space = header.values.get("tokenizer.ggml.add_space_prefix") is True
    library.pre_tokenizer = pre.build(adds_prefix_space=adds_prefix_space)
    library.decoder = decoders.ByteLevel()
    normalizer = pre.normalizer()
    if normalizer is not None:
        library.normalizer = normalizer
    for token, kind in zip(tokens, _types(header), strict=False):
        if kind == _CONTROL:
            library.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            library.add_tokens([AddedToken(token, normalized=False, special=False)])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for field, key in _SPECIAL_TOKENS.items():
        token_id = header.values.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token_id, int):
            config[field] = tokens[token_id]
    adds_bos = header.values.get("tokenizer.ggml.add_bos_token", pre.adds_bos) is True and "bos_token" in config
    adds_eos = header.values.get("tokenizer.ggml.add_eos_token") is True and "eos_token" in config
    config |= {"add_bos_token": adds_bos, "add_eos_token": adds_eos}
    first = [config["bos_token"]] if adds_bos else []
    last = [config["eos_token"]] if adds_eos else []
    if first or last:
        around = dict.fromkeys([*first, *last])
        library.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last], special_tokens=[(token, vocab[token]) for token in around]
        )
    return library, config


def _pre_tokenizer(header: GgufHeader) -> PreTokenizer:
    name = header.values.get("tokenizer.ggml.pre")
    if name is None:
        log.warning("the file does not say how its tokenizer cuts texts", extra={"file": str(header.path)})
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise ModelFilesError(
            f"{header.path} has a tokenizer that cuts texts in the way {name!r} (tokenizer.ggml.pre), which is not "
            "known here: serve the model's safetensors and tokenizer.json instead"
        )
    return PRE_TOKENIZERS[str(name)]


def _read_by_transformers(header: GgufHeader) -> tuple[Tokenizer, dict[str, Any]]:
    with as_model_error(lambda said: ModelFilesError(f"{header.path} has a tokenizer that cannot be read: {said}")):
        # The other class asks for the config of an architecture that transformers does not import.
        reader = AutoTokenizer if table_of(header) is None else PreTrainedTokenizerFast
        tokenizer = reader.from_pretrained(header.path.parent, gguf_file=header.path.name)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for field in _SPECIAL_TOKENS:
        if header.values.get(f"tokenizer.ggml.{_SPECIAL_TOKENS[field]}_token_id") is not None:
            config[field] = str(getattr(tokenizer, field))
    for field in ("add_bos_token", "add_eos_token"):
        config[field] = bool(getattr(tokenizer, field, False))
    library: Tokenizer = tokenizer.backend_tokenizer
    return library, config


def _tokens(header: GgufHeader) -> list[str]:
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelFilesError(f"{header.path} has no tokenizer.ggml.tokens: it holds a model without a tokenizer")
    return tokens


def _types(header: GgufHeader) -> list[int]:
    types = header.values.get("tokenizer.ggml.token_type", [])
    if not isinstance(types, list) or len(types) not in (0, len(_tokens(header))):
        raise ModelFilesError(f"{header.path} has a tokenizer.ggml.token_type of another length than its token list")
    return types


def _is_spelling(name: str | None, token: str) -> bool:
    """Gemma's runs of blanks are spelt by marks, and T5's blanks by their own names, where the file has others."""
    if name is None:
        return False
    is_blank = not token.strip(" ")
    return name == token or (is_blank and name == "▁" * len(token)) or bool(_BLANK_OF_T5.fullmatch(name))


def _shown(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMES_SHOWN])
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return f"{shown}{more}"


def _write_further_templates(header: GgufHeader, folder: Path) -> None:
    """Write `tokenizer.chat_template.NAME` where transformers keeps templates that have a name."""
    for key, source in header.values.items():
        name = key.removeprefix(_NAMED_TEMPLATE)
        if name == key or not isinstance(source, str):
            continue
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ModelFilesError(
                f"{header.path} names a chat template {name!r}; letters, digits, `_` and `-` are known"
            )
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(source, encoding="utf-8")
