"""Reads a JSON list of Kubernetes objects, prints a JSON list of what strict mode refuses. Run by .venv-deploy."""

import json
import sys

import kubernetes_validate

VERSION = "1.37"


def main() -> None:
    found = []
    for thing in json.load(sys.stdin):
        name = f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"
        try:
            kubernetes_validate.validate(thing, VERSION, strict=True)
        except (
            kubernetes_validate.ValidationError,
            kubernetes_validate.SchemaNotFoundError,
            kubernetes_validate.InvalidSchemaError,
        ) as error:
            found.append(f"{name}: {getattr(error, 'message', error)}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
