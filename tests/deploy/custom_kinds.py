"""Objects of custom kinds are checked against small strict schemas: fields that are not listed are refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.deploy.manifests import Object, name_of

SCHEMAS = Path(__file__).parent / "schemas"


def has_schema(thing: Object) -> bool:
    return (SCHEMAS / f"{thing['kind']}.json").exists()


def problems_of(thing: Object) -> list[str]:
    """Return a sentence for each place where the object differs from the schema of its kind."""
    errors = _validator(thing["kind"]).iter_errors(thing)
    return [f"{name_of(thing)}: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@cache
def _validator(kind: str) -> Any:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
