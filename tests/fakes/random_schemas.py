"""Random JSON schemas that the grammar compiler takes, as hypothesis strategies. All values have bounded sizes."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
NAMES = ("a", "name", "the key", "ü", 'q"', "n_1")


def scalars() -> st.SearchStrategy[Schema]:
    """Return schemas of values without parts."""
    bounds = st.tuples(st.integers(-50, 50), st.integers(0, 100))
    lengths = st.tuples(st.integers(0, 2), st.integers(0, 4))
    constants = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text('aé"\\ \n', max_size=3))
    return st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        bounds.map(lambda low: {"type": "integer", "minimum": low[0], "maximum": low[0] + low[1]}),
        bounds.map(lambda low: {"type": "number", "minimum": low[0], "exclusiveMaximum": low[0] + low[1] + 1}),
        lengths.map(lambda least: {"type": "string", "minLength": least[0], "maxLength": least[0] + least[1]}),
        st.sampled_from(["^[a-c]{1,3}$", "^x?y+z$", r"^\d{2}:\d{2}$"]).map(lambda p: {"type": "string", "pattern": p}),
        st.just({"type": "string", "format": "date"}),
        st.lists(constants, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        constants.map(lambda value: {"const": value}),
        st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 9}),
    )


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Schema]) -> Schema:
    """Draw a schema of objects, some of whose members are required."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=0, max_size=3, unique=True))
    required = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    properties = {name: draw(parts) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def schemas() -> st.SearchStrategy[Schema]:
    """Return schemas of a few levels."""
    return st.recursive(
        scalars(),
        lambda parts: st.one_of(
            objects(parts),
            st.tuples(parts, st.integers(0, 2)).map(
                lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1] // 2, "maxItems": pair[1]}
            ),
            st.lists(parts, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
            parts.map(lambda part: {"$ref": "#/$defs/part", "$defs": {"part": part}}),
        ),
        max_leaves=6,
    ).filter(_has_no_inner_reference)


def _has_no_inner_reference(schema: Schema) -> bool:
    """Return whether no part has a reference, which would not find the inner `$defs` from the top of the schema."""
    return "$ref" not in str({name: part for name, part in schema.items() if name != "$ref"})
