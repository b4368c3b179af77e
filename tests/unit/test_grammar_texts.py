"""Router and shard read a grammar's text alike: what the router has compiled is what the shard matches."""

import pytest
from textmill_router.grammar_worker import library_grammar as router_grammar
from textmill_router.request import Grammar, GrammarKind
from textmill_shard.grammar_matcher import library_grammar as shard_grammar
from textmill_shard.plan import Grammar as ShardGrammar
from textmill_shard.plan import GrammarKind as ShardGrammarKind

TEXTS = {
    GrammarKind.JSON_SCHEMA: '{"type":"object","properties":{"a":{"type":"integer"}}}',
    GrammarKind.REGEX: r"a/[0-9]+\n",
    GrammarKind.LARK: 'start: "a" answer\nanswer: %json {"type": "object"}',
}


@pytest.mark.parametrize("kind", GrammarKind)
def test_both_rooms_hand_the_same_to_the_library(kind: GrammarKind) -> None:
    text = TEXTS[kind]
    assert router_grammar(Grammar(kind, text)) == shard_grammar(ShardGrammar(ShardGrammarKind[kind.name], text))
