"""Which JSON the grammar of a schema lets through."""

from textmill_router.exact_json import parse_json
from textmill_router.grammar.schema.rules import SchemaRules, schema_rules
from textmill_router.request import Grammar

from tests.fakes.grammar_judge import Judge


class SchemaJudge:
    """The rules of one schema, given as JSON text, and what they let through."""

    def __init__(self, schema_text: str, *, closes_objects: bool = True) -> None:
        self.rules: SchemaRules = schema_rules(parse_json(schema_text), prefix="s", closes_objects=closes_objects)
        self._judge = Judge()
        self._grammar = Grammar("\n".join([f"start: {self.rules.body}", *self.rules.rules]))

    def takes(self, text: str) -> bool:
        """Whether the text is let through whole."""
        return self._judge.follows({}, self._grammar, text)
