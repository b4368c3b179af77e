"""Compiles grammars over the model's vocabulary into matchers, which know the tokens that may come next."""

# V vocabulary of the logits, W words of 32 bits that hold one bit per token

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import llguidance
import numpy as np
import numpy.typing as npt

from textmill_shard.grammar.fault import GrammarFault
from textmill_shard.slots.plan import Grammar

MAX_KEPT_GRAMMARS = 64
_BITS_PER_WORD = 32


class Matcher:
    """The place of one request's output in its grammar. Only one thread at a time may call a matcher."""

    def __init__(self, library: llguidance.LLMatcher, vocab_size: int) -> None:
        self._library = library
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return [V] which ids may follow, with the EOS ids where the output may end. The GIL is free meanwhile."""
        words_W = np.zeros(-(-self._vocab_size // _BITS_PER_WORD), dtype=np.uint32)
        self._library.unsafe_compute_mask_ptr(words_W.ctypes.data, words_W.nbytes)
        self._check()
        bits = np.unpackbits(words_W.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].view(np.bool_)

    def consume(self, tokens: Sequence[int]) -> None:
        """Move on by tokens. Raises GrammarFault for a token that was not allowed."""
        self._library.consume_tokens(list(tokens))
        self._check()

    def copy(self) -> "Matcher":
        """Return a matcher at the same place, which later calls of this matcher do not move."""
        return Matcher(self._library.deep_copy(), self._vocab_size)

    def _check(self) -> None:
        if self._library.is_error():
            error = self._library.get_error()
            reason = "no token can follow the text so far" if error.startswith("NoExtension") else error
            raise GrammarFault(f"the grammar cannot be followed any further: {reason}")


class MatcherFactory:
    """Compiles grammars for one vocabulary and keeps those compiled last, for each caller apart, so that the time tells
    a caller nothing of the grammars of others. Any thread may call `build`.

    Compiling reads the vocabulary's prefix tree and gives the GIL back. The limits are the library's defaults: the
    router has compiled the same text under the same ones before it was admitted.
    """

    def __init__(self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Raises ValueError for a tokenizer that the library cannot read. Takes half a second."""
        self._tokenizer = llguidance.LLTokenizer(
            with_readable_decoder(without_special_texts(with_ends(tokenizer_json, eos_token_ids))),
            n_vocab=vocab_size,
            eos_token=list(eos_token_ids),
        )
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, Grammar], Matcher] = OrderedDict()  # by the number of the caller

    def build(self, grammar: Grammar, output_ids: Sequence[int] = (), *, caller: int = 0) -> Matcher:
        """Return a matcher that has consumed `output_ids`. Raises GrammarFault."""
        key = (caller, grammar)
        with self._lock:
            first = self._kept.get(key)
            if first is not None:
                self._kept.move_to_end(key)
                matcher = first.copy()
        if first is None:
            first = self._compile(grammar)
            matcher = first.copy()
            with self._lock:
                self._kept[key] = first
                if len(self._kept) > MAX_KEPT_GRAMMARS:
                    self._kept.popitem(last=False)
        if output_ids:
            matcher.consume(output_ids)
        return matcher

    def _compile(self, grammar: Grammar) -> Matcher:
        library = llguidance.LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=self._limits)
        if library.get_error():
            raise GrammarFault(f"the grammar does not compile: {library.get_error()}")
        matcher = Matcher(library, self._vocab_size)
        matcher.allowed()  # the first mask of a large grammar is the dear one: copies inherit what it worked out
        return matcher


def with_readable_decoder(tokenizer_json: str) -> str:
    """The tokenizer with marks of spaces undone in a form that the library reads: of Metaspace it knows nothing."""
    parts = json.loads(tokenizer_json)
    decoder = parts.get("decoder") if isinstance(parts, dict) else None
    if not isinstance(decoder, dict) or decoder.get("type") != "Metaspace":
        return tokenizer_json
    mark = {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    parts["decoder"] = {"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps(parts)


def with_ends(tokenizer_json: str, ids: Sequence[int]) -> str:
    """Return the tokenizer with a nameless special token for each id up to the largest of `ids` that it lacks.

    A token that ends a text may stand in the other files of a tokenizer, or only in the model. The library refuses the
    id of a token that it does not know. Raises ValueError for a text that is no tokenizer.
    """
    try:
        parts = json.loads(tokenizer_json)
        vocab, added = parts["model"]["vocab"], parts["added_tokens"]
        size = max(vocab.values(), default=-1) + 1 if isinstance(vocab, dict) else len(vocab)
        size = max([size, *(token["id"] + 1 for token in added)])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no tokenizer: {error!r}") from error
    if all(token_id < size for token_id in ids):
        return tokenizer_json
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added += [{"id": new, "content": f"\ufdd2{new}\ufdd2", **plain} for new in range(size, max(ids) + 1)]
    return json.dumps(parts)


def without_special_texts(tokenizer_json: str) -> str:
    """The tokenizer with special tokens that no text names. Raises ValueError for what is no tokenizer.

    The library reads `<|end|>` in a schema's constant or a tool's name as the token, so that the answer would end
    there.
    """
    try:
        parts = json.loads(tokenizer_json)
        special = [token for token in parts["added_tokens"] if token["special"]]
        names = {token["content"]: f"\ufdd2{token['id']}\ufdd2" for token in special}
        for token in special:
            token["content"] = names[token["content"]]
        model = parts["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(text, text): token_id for text, token_id in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no tokenizer: {error!r}") from error
    parts["post_processor"] = None  # it names them too, and is not used
    return json.dumps(parts)


def load_matcher_factory(
    model_dir: Path, *, vocab_size: int, eos_token_ids: Sequence[int]
) -> tuple[MatcherFactory | None, str]:
    """The factory for a model folder, or None and the reason why its requests can have no grammar."""
    if not eos_token_ids:
        return None, "the model has no EOS token, so no output could end where its grammar does"
    try:
        text = (model_dir / "tokenizer.json").read_text()
        return MatcherFactory(text, vocab_size=vocab_size, eos_token_ids=eos_token_ids), ""
    except OSError as error:
        return None, f"no tokenizer.json: {error.strerror}"
    except ValueError as error:
        return None, f"tokenizer.json cannot be read: {error}"
