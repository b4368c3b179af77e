"""The shard matches the grammar that the router has written, with one tokenizer and one text for both rooms."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from textmill_router.grammar.request_forms import schema_grammar
from textmill_router.grammar.worker import with_ends as router_ends
from textmill_router.grammar.worker import with_readable_decoder as router_decoder
from textmill_shard.grammar.matcher import MatcherFactory, without_special_texts
from textmill_shard.grammar.matcher import with_ends as shard_ends
from textmill_shard.grammar.matcher import with_readable_decoder as shard_decoder
from textmill_shard.slots.plan import Grammar
from tokenizers import models

from tests.fakes.byte_tokenizer import END, END_ID, write_byte_tokenizer
from tests.fakes.tiny_encoders import PIECES, T5_END_ID, make_tiny_t5


def of_schema(schema: dict[str, Any]) -> Grammar:
    """Return the grammar of a schema as the router sends it."""
    return Grammar(schema_grammar(schema, field="schema").whole_output().text)


def unknown_json() -> str:
    """Return a vocabulary whose special token also stands for unknown characters."""
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, END: 2}, merges=[], unk_token=END))
    library.add_special_tokens([END])
    return library.to_str()


def unigram_json() -> str:
    library = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), (END, -2.0)], unk_id=0))
    library.add_special_tokens([END])
    return library.to_str()


def test_tokenizers_keep_their_ids_without_the_texts_of_special_tokens(tmp_path: Path) -> None:
    text = (write_byte_tokenizer(tmp_path) / "tokenizer.json").read_text()
    assert tokenizers.Tokenizer.from_str(without_special_texts(unknown_json())).encode("axb").ids == [0, 2, 1]
    for before, end_id in ((text, END_ID), (unigram_json(), 2)):
        library = tokenizers.Tokenizer.from_str(without_special_texts(before))
        assert library.get_vocab_size() == tokenizers.Tokenizer.from_str(before).get_vocab_size()
        assert end_id not in library.encode(f"a{END}").ids
        assert library.get_added_tokens_decoder()[end_id].special
    for bad in ("[]", "{}", '{"added_tokens": [], "model": {"vocab": 5}}'):
        with pytest.raises(ValueError, match="no tokenizer"):
            without_special_texts(bad)


def test_both_rooms_read_marks_of_spaces_as_spaces(tmp_path: Path) -> None:
    folder = make_tiny_t5(tmp_path)
    text = (folder / "tokenizer.json").read_text()
    assert router_decoder(text) == shard_decoder(text)
    plain = (write_byte_tokenizer(tmp_path / "bytes") / "tokenizer.json").read_text()
    assert router_decoder(plain) == shard_decoder(plain) == plain
    factory = MatcherFactory(text, vocab_size=len(PIECES), eos_token_ids=[T5_END_ID])
    matcher = factory.build(Grammar("start: /(the| quick)!/"))
    allowed = {PIECES[token_id] for token_id in matcher.allowed().nonzero()[0]}
    assert allowed == {"t", "▁", "▁quick"}


def test_both_rooms_know_the_ends_of_texts_that_tokenizer_json_lacks(tmp_path: Path) -> None:
    text = (write_byte_tokenizer(tmp_path) / "tokenizer.json").read_text()
    for whole in (text, unigram_json()):
        assert router_ends(whole, (2,)) == shard_ends(whole, (2,)) == whole
        more = router_ends(whole, (2, 300))
        assert more == shard_ends(whole, (2, 300))
        library = tokenizers.Tokenizer.from_str(more)
        before = tokenizers.Tokenizer.from_str(whole).get_vocab()
        assert library.get_vocab_size() == 301
        assert library.get_vocab().items() >= before.items()
    # A model of 320 tokens whose tokenizer has 258, as where an end stands in added_tokens.json alone.
    matcher = MatcherFactory(text, vocab_size=320, eos_token_ids=(300, END_ID)).build(Grammar("start: /a/"))
    matcher.consume([ord("a")])
    assert matcher.allowed().nonzero()[0].tolist() == [END_ID, 300]
    for bad in ("[]", "{}"):
        with pytest.raises(ValueError, match="no tokenizer"):
            router_ends(bad, (1,))


def test_blanks_between_the_tokens_of_json_are_bounded(tmp_path: Path) -> None:
    """Blanks are none, one space, or a new line with up to 32 blanks. Small models would write more for ever."""
    folder = write_byte_tokenizer(tmp_path)
    matchers = MatcherFactory((folder / "tokenizer.json").read_text(), vocab_size=258, eos_token_ids=(END_ID,))
    grammar = of_schema({"type": "array", "items": {"type": "null"}})

    def takes(text: str) -> bool:
        matcher = matchers.build(grammar)
        for byte in text.encode():
            if not matcher.allowed()[byte]:
                return False
            matcher.consume([byte])
        return bool(matcher.allowed()[END_ID])

    for blanks in ("", " ", "\n", "\n" + " " * 32, "\n\t \t"):
        assert takes(f"[{blanks}null{blanks},{blanks}null{blanks}]"), blanks
    for blanks in ("  ", "\t", "\r\n", "\n\n", "\n" + " " * 33):
        assert not takes(f"[{blanks}null]"), blanks
        assert not takes(f"[null,{blanks}null]"), blanks


def test_texts_of_special_tokens_in_a_grammar_are_letters(tmp_path: Path) -> None:
    """The answer does not end in the middle of a constant that contains such a text."""
    folder = write_byte_tokenizer(tmp_path)
    matchers = MatcherFactory((folder / "tokenizer.json").read_text(), vocab_size=258, eos_token_ids=(END_ID,))
    matcher = matchers.build(of_schema({"const": f"a{END}b"}))
    for byte in json.dumps(f"a{END}b").encode():
        allowed = matcher.allowed()
        assert allowed[byte]
        assert not allowed[END_ID]
        matcher.consume([byte])
    assert matcher.allowed()[END_ID]
