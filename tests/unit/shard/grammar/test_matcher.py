"""Compiled grammars are kept for the caller who sent them."""

from pathlib import Path

import pytest
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.slots.plan import Grammar

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer


def test_a_grammar_is_compiled_once_for_each_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (write_byte_tokenizer(tmp_path) / "tokenizer.json").read_text()
    factory = MatcherFactory(text, vocab_size=320, eos_token_ids=(END_ID,))
    compiled: list[Grammar] = []
    compile_grammar = factory._compile

    def counted(grammar: Grammar) -> object:
        compiled.append(grammar)
        return compile_grammar(grammar)

    monkeypatch.setattr(factory, "_compile", counted)
    grammar = Grammar("start: /[ab]{3}/")
    for caller, num_compiled in ((1, 1), (1, 1), (2, 2), (1, 2), (2, 2)):
        matcher = factory.build(grammar, caller=caller)
        assert len(compiled) == num_compiled
        allowed = matcher.allowed().nonzero()[0].tolist()
        assert len(allowed) == 2
