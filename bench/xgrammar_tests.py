"""Runs the tests of xgrammar's schemas against Textmill's grammars.

`python -m bench.xgrammar_tests FOLDER/tests/python/test_json_schema_converter.py ...`, with files of a checkout of
https://github.com/mlc-ai/xgrammar. A module of the name `xgrammar` stands in for theirs: an answer is accepted if
Textmill's grammar lets its text through and the check takes the text. Blanks of other forms than Textmill's are left
out of texts of several lines. Tests that compare the text of a grammar only ask whether the schema compiles.
"""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from textmill_router.exact_json import parse_json
from textmill_router.grammar.request_forms import AskedGrammar, schema_grammar

from bench.schema_suites import Judge, is_taken, lets_through

_JUDGE = Judge()


class Grammar:
    """A compiled schema."""

    def __init__(self, asked: AskedGrammar, *, closes_objects: bool) -> None:
        self._asked = asked
        self._matcher = _JUDGE.compile(asked, closes_objects=closes_objects)

    @classmethod
    def from_json_schema(cls, schema: Any, *, strict_mode: bool = True, **_: Any) -> "Grammar":
        """`strict_mode` closes objects. Raises RuntimeError for a schema that is refused."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        try:
            schema = parse_json(schema if isinstance(schema, str) else json.dumps(schema))
            return cls(schema_grammar(schema, field="response_format"), closes_objects=strict_mode)
        except Exception as error:
            raise RuntimeError(str(error)) from error

    def accepts(self, text: str) -> bool:
        """Whether an answer of this text comes out."""
        return lets_through(self._matcher, text) and is_taken(self._asked, text)


def _accepts(grammar: Grammar, text: str, **_: Any) -> bool:
    return grammar.accepts(_on_one_line(text))


def _on_one_line(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) if "\n" in text else text
    except ValueError:
        return text


def _compiles(schema: Any, _text: str = "", *, strict_mode: bool = True, **_: Any) -> str:
    Grammar.from_json_schema(schema, strict_mode=strict_mode)
    return ""


def _of_another_engine(*_: Any, **__: Any) -> Any:
    pytest.skip("about the inside of xgrammar")


class _Plugin:
    """A plugin of pytest."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Replace the comparison of grammars' texts in each module of tests."""
        for item in items:
            if hasattr(item.module, "check_schema_with_grammar"):
                item.module.check_schema_with_grammar = _compiles


def main() -> int:
    """Run pytest with the files and flags of the command line."""
    package, testing = ModuleType("xgrammar"), ModuleType("xgrammar.testing")
    others = ("GrammarFunctor", "_generate_float_regex", "_generate_range_regex", "_get_masked_tokens_from_bitmask")
    names = {**dict.fromkeys(others, _of_another_engine), "_json_schema_to_ebnf": _compiles}
    vars(testing).update(names, _is_grammar_accept_string=_accepts)
    vars(package).update(Grammar=Grammar, GrammarCompiler=_of_another_engine, TokenizerInfo=_of_another_engine)
    sys.modules |= {"xgrammar": package, "xgrammar.testing": testing}
    flags = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=line"]
    return int(pytest.main([*flags, *sys.argv[1:]], plugins=[_Plugin()]))


if __name__ == "__main__":
    sys.exit(main())
