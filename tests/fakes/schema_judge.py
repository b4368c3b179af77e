"""Which JSON the grammar of a schema lets through."""

from textmill_router.errors import GenerationBroke
from textmill_router.exact_json import parse_json
from textmill_router.grammar.answer_check import check_answer
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind
from textmill_router.grammar.schema.rules import SchemaRules, schema_rules
from textmill_router.request import Grammar

from tests.fakes.grammar_judge import Judge


class SchemaJudge:
    """The rules of one schema, given as JSON text, and what they let through."""

    def __init__(self, schema_text: str, *, closes_objects: bool = True) -> None:
        self._asked = AskedGrammar(AskedKind.JSON_SCHEMA, schema_text)
        self.rules: SchemaRules = schema_rules(parse_json(schema_text), prefix="s", closes_objects=closes_objects)
        self._judge = Judge()
        self._grammar = Grammar("\n".join([f"start: {self.rules.body}", *self.rules.rules]))

    def takes(self, text: str) -> bool:
        """Whether the text is let through whole."""
        return self._judge.follows({}, self._grammar, text)

    def comes_out(self, text: str) -> bool:
        """Whether the text is let through whole and the check of the finished answer takes the text."""
        try:
            check_answer(text, self._asked)
        except GenerationBroke:
            return False
        return self.takes(text)
