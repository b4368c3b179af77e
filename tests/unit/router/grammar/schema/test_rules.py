"""What the grammar of a schema lets through, for numbers of any length above all."""

import json

import pytest

from tests.fakes.schema_judge import SchemaJudge


def of_property(schema: str) -> str:
    return f'{{"type":"object","properties":{{"p":{schema}}},"required":["p"]}}'


ACCOUNT = '{"type":"integer","enum":[1234567890123456789]}'
TREE = (
    '{"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":'
    '{"id":{"const":123456789012345678},"next":{"$ref":"#/$defs/t"}},"required":["id"]}}}'
)
ALL_OF = (
    '{"allOf":[{"$ref":"#/$defs/t"},{"properties":{"x":{"type":"integer"}},"required":["x"]}],'
    '"$defs":{"t":{"type":"object","properties":{"id":{"const":123456789012345678}},"required":["id"]}}}'
)
NESTED = '[1,{"a":123456789012345678,"b":"x\\ny/"}]'

# Schema, texts that it takes, texts that it does not. The values are those of JSON Schema's arithmetic.
EXACT = {
    "constant": (
        of_property('{"const":9007199254740993}'),
        ['{"p":9007199254740993}', '{ "p": 9007199254740993\n}'],
        ['{"p":9007199254740992}', "{}"],
    ),
    "enum": (of_property(ACCOUNT), ['{"p":1234567890123456789}'], ['{"p":1234567890123456768}']),
    "range of 64 bits": (
        of_property('{"type":"integer","minimum":-9223372036854775808,"maximum":9223372036854775807}'),
        ['{"p":9223372036854775807}', '{"p":0}', '{"p": -9223372036854775808}'],
        ['{"p":9223372036854775808}', '{"p":-9223372036854775809}', '{"p":1.5}'],
    ),
    "decimals beside the library's text": (
        '{"type":"object","properties":{"q":{"type":"string","maxLength":3},'
        '"p":{"anyOf":[{"const":0.12345678901234567890},{"type":"null"}]},'
        '"r":{"type":"array","items":{"type":"integer","maximum":99999999999999999999}}},"required":["p"]}',
        ['{"p":null}', '{"q":"abc","p":0.12345678901234567890,"r":[1,99999999999999999999]}', '{"p":null,"r":[]}'],
        [
            '{"p":null,"r":[100000000000000000000]}',
            '{"p":null,"x":1}',
            '{"q":"abcd","p":null}',
            '{"p":0.12345678901234568}',
        ],
    ),
    "open object": (
        '{"type":"object","properties":{"p":{"const":9007199254740993}},"required":["p"],"additionalProperties":true}',
        ['{"p":9007199254740993,"x":[1],"y":{}}'],
        ['{"x":1}', '{"p":9007199254740993,"p":1}'],
    ),
    "circle of references": (
        TREE,
        ['{"id":123456789012345678,"next":{"id":123456789012345678}}'],
        ['{"id":1}', '{"id":123456789012345678,"next":{}}'],
    ),
    "allOf": (ALL_OF, ['{"id":123456789012345678,"x":5}'], ['{"id":123456789012345678}', '{"id":1,"x":2}']),
    "inside a constant": (f'{{"const":{NESTED}}}', [NESTED, '[ 1, {"a": 123456789012345678, "b": "x\\ny/"}]'], ["[1]"]),
    "first items": (
        '{"type":"array","prefixItems":[{"const":9007199254740993},{"type":"null"}],"items":{"type":"boolean"},'
        '"minItems":1,"maxItems":4}',
        ["[9007199254740993]", "[9007199254740993,null,true,false]"],
        ["[]", "[9007199254740993,true]", "[9007199254740993,null,true,false,true]"],
    ),
    "several types": (
        '{"type":["integer","string"],"maximum":1e30}',
        ["5", '"a"', "1" + "0" * 30],
        ["1" + "0" * 29 + "1", "1.5", "null"],
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_numbers_that_no_double_holds_are_enforced_to_the_digit(case: str) -> None:
    schema, inside, outside = EXACT[case]
    judge = SchemaJudge(schema)
    assert not judge.rules.weakened
    for text in inside:
        assert judge.takes(text), text
    for text in outside:
        assert not judge.takes(text), text


def test_what_no_rule_can_say_of_such_numbers_is_named() -> None:
    dear = SchemaJudge('{"type":"integer","multipleOf":99999989}')
    assert dear.rules.weakened == {"multipleOf"}
    assert dear.takes("5")
    assert not dear.takes('"a"')
    beside_patterns = SchemaJudge('{"patternProperties":{"^a":{"const":9007199254740993}},"type":"object"}')
    assert beside_patterns.rules.weakened == {"const"}
    assert beside_patterns.takes('{"ab":9007199254740993}')
    assert not beside_patterns.takes('{"ab":"x"}')


def test_equal_schemas_have_equal_texts() -> None:
    assert SchemaJudge(ALL_OF).rules == SchemaJudge(ALL_OF).rules


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
        {"exclusiveMinimum": 0.0, "maximum": 0.1},
        {"minimum": -1.5, "exclusiveMinimum": 0, "maximum": 0.183},
    ],
    ids=str,
)
def test_zero_is_left_out_below_an_upper_bound_under_one(bounds: dict[str, float]) -> None:
    for schema in ({"type": "number", **bounds}, {"type": "object", "properties": {"n": {"type": "number", **bounds}}}):
        judge = SchemaJudge(json.dumps(schema))
        assert not judge.rules.weakened
        text = '{"n":%s}' if "properties" in schema else "%s"
        assert judge.takes(text % "0.05")
        for outside in ("0", "0.0", "-0.1", "0.6"):
            assert not judge.takes(text % outside), outside
