"""/openapi.json compared with TGI's published document, field by field.

`data/tgi_api_facts.json` has the paths, bodies and answers of TGI 3.3.6's document, and the fields, types and enums of
each schema.
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router.api.openapi.descriptions import FIELD_DESCRIPTIONS
from textmill_router.api.openapi.document import COMPONENT_NAMES
from textmill_router.api.route_table import openapi_document

FACTS = json.loads((Path(__file__).parent / "data" / "tgi_api_facts.json").read_text())
DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]

# Parts of TGI's document that ours lacks or names otherwise, with the reason. docs/compatibility.md tells users.
NOT_YET: set[str] = set()
DIFFERENCES = {
    "FinishReason": "an enum, written where it is used",
    "GrammarType": "three schemas in `GenerateParameters.grammar`: JsonGrammar, RegexGrammar, JsonSchemaGrammar",
    "Prompt": "written where it is used",
    "TokenizeResponse": "a list, written where it is used",
    "MessageBody": "fields of Message",
    "MessageContent": "the type of Message.content",
    "SagemakerRequest": "a union, written where it is used",
    "SagemakerResponse": "a union, written where it is used",
    "SagemakerStreamResponse": "a union, written where it is used",
    "TextMessage": "fields of OutputMessage and ChatCompletionDelta",
    "ToolCallDelta": "fields of ChatCompletionDelta",
    "ToolCallMessage": "fields of OutputMessage",
    "ToolChoice": "any JSON in the schema: a word or an object",
    "FunctionName": "inside tool_choice",
    "ChatCompletionDelta.tool_call_id": "never sent by TGI either",
    "OutputMessage.tool_call_id": "never sent by TGI either",
    "ChatRequest.tool_choice has values [], TGI ['auto', 'none', 'required']": "a word, a tool's name or an object",
    "MessageChunk.type has values [], TGI ['text']": "a part that is no text gets a 422 with a sentence of its own",
    "Completion": "CompletionFinal and Chunk",
    "CompletionComplete.logprobs has types ['null', 'object'], TGI ['array', 'null']": "OpenAI's legacy object",
}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMAS[reference.rpartition("/")[2]] if reference else schema


def types_of(schema: dict[str, Any]) -> set[str]:
    """Return the JSON types that a schema lets through, or `any` where the schema names none."""
    schema = resolve(schema)
    if "anyOf" in schema:
        return set().union(*(types_of(one) for one in schema["anyOf"]))
    if "enum" in schema and "type" not in schema:
        return {{str: "string", type(None): "null"}[type(value)] for value in schema["enum"]}
    kinds = schema.get("type", "any")
    return set(kinds) if isinstance(kinds, list) else {kinds}


def enum_of(schema: dict[str, Any]) -> set[Any]:
    schema = resolve(schema)
    found = set(schema.get("enum", ()))
    for one in schema.get("anyOf", ()):
        found |= enum_of(one)
    return found


def fits(wanted: set[str], found: set[str]) -> bool:
    if "any" in found:
        return True
    wanted = wanted - {"null"} if "null" not in found else wanted
    return all(kind in found or (kind == "integer" and "number" in found) for kind in wanted - {"any"})


def compare_schema(name: str) -> list[str]:
    """Return what our document lacks of one schema of TGI."""
    facts = FACTS["schemas"][name]
    ours = SCHEMAS.get(name)
    if ours is None:
        return [name]
    missing = []
    for field, fact in facts.get("fields", {}).items():
        found = ours.get("properties", {}).get(field)
        label = f"{name}.{field}"
        if found is None:
            missing.append(label)
            continue
        if not fits(set(fact["types"]), types_of(found)):
            missing.append(f"{label} has types {sorted(types_of(found))}, TGI {fact['types']}")
        values = enum_of(found)
        if "enum" in fact and not set(fact["enum"]) <= values:
            missing.append(f"{label} has values {sorted(values)}, TGI {fact['enum']}")
    return missing


@pytest.mark.parametrize("name", sorted(FACTS["schemas"]))
def test_schema_has_every_field_type_and_value_of_tgi(name: str) -> None:
    assert [one for one in compare_schema(name) if one not in DIFFERENCES] == []


def fields_of_requests() -> list[tuple[str, str, dict[str, Any]]]:
    """Schema, name and schema of each field that a client may send, found by following the references."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    text = json.dumps([one.get("requestBody") for path in DOCUMENT["paths"].values() for one in path.values()])
    names: set[str] = set()
    while wanted := set(re.findall(r'#/components/schemas/(\w+)"', text)) - names:
        names |= wanted
        text = json.dumps([SCHEMAS[name] for name in wanted])
    for name in names:
        found += [(name, field, schema) for field, schema in SCHEMAS[name]["properties"].items()]
    return found


def test_each_field_and_parameter_of_a_request_is_described() -> None:
    fields = fields_of_requests()
    assert {name for name, _, _ in fields} >= {
        "ChatRequest",
        "GenerateParameters",
        "StreamOptions",
        "Tool",
        "RegexGrammar",
    }
    assert [(name, field) for name, field, schema in fields if len(schema.get("description", "")) < 10] == []
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert all(parameter["description"] for parameter in operation.get("parameters", ()))


def test_no_description_is_left_of_a_field_that_is_gone() -> None:
    ours = {theirs: name for name, theirs in COMPONENT_NAMES.items()}
    known = {field for _, field, _ in fields_of_requests()}
    known |= {f"{ours.get(name, name)}.{field}" for name, field, _ in fields_of_requests()}
    assert set(FIELD_DESCRIPTIONS) - known == set()


def test_differences_are_real() -> None:
    found = {one for name in FACTS["schemas"] for one in compare_schema(name)}
    assert set(DIFFERENCES) - found == set()


def test_paths_that_are_not_built_are_listed() -> None:
    assert set(FACTS["paths"]) - set(DOCUMENT["paths"]) == NOT_YET


@pytest.mark.parametrize("path", sorted(set(FACTS["paths"]) - NOT_YET))
def test_path_has_every_method_status_and_media_type_of_tgi(path: str) -> None:
    for method, fact in FACTS["paths"][path].items():
        operation = DOCUMENT["paths"][path][method]
        assert set(fact["responses"]) <= set(operation["responses"])
        for status, media in fact["responses"].items():
            if status == "200":
                assert set(media) <= set(operation["responses"][status].get("content", {}))
            else:
                # An error before the stream is JSON on every route.
                assert set(operation["responses"][status].get("content", {})) == (
                    {"application/json"} if media else set()
                )
        if "body" in fact:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            names = {one.get("$ref", "").rpartition("/")[2] for one in body.get("anyOf", [body])}
            wanted = {"SagemakerRequest": "CompatGenerateRequest", "GenerateRequest": ""}.get(
                fact["body"], fact["body"]
            )
            assert wanted in names or (
                fact["body"] == "GenerateRequest" and names & {"GenerateRequest", "TokenizeRequest"}
            )


def test_finish_reasons_and_grammars_have_tgis_values() -> None:
    for name in ("Details", "BestOfSequence", "StreamDetails"):
        assert enum_of(SCHEMAS[name]["properties"]["finish_reason"]) == set(FACTS["schemas"]["FinishReason"]["enum"])
    grammar = SCHEMAS["GenerateParameters"]["properties"]["grammar"]
    kinds = set().union(*(enum_of(resolve(one)["properties"]["type"]) for one in grammar["anyOf"] if "$ref" in one))
    assert {"json", "regex", "json_schema"} <= kinds


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT)))
    assert names <= set(SCHEMAS)
    ids = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", ["/openapi.json", "/api-doc/openapi.json"])
def test_document_is_served(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == DOCUMENT


def filled(path: str) -> str:
    """Return the path with the model and the version that the server has."""
    return path.replace("{model}", "fake/model").replace("{version}", "1")


def test_every_described_route_is_there_and_every_route_is_described(client: httpx.Client) -> None:
    for path, methods in DOCUMENT["paths"].items():
        allowed = client.options(filled(path)).headers["allow"].split(", ")
        assert {method.upper() for method in methods} == set(allowed) - {"HEAD", "OPTIONS"}, path


def test_examples_are_taken(client: httpx.Client) -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                example = operation["requestBody"]["content"]["application/json"]["example"]
                answer = client.request(method, filled(path), json=example)
                # A server without --lora-runtime-updates lets no caller change adapters.
                status = 403 if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") else 200
                assert answer.status_code == status, (path, answer.text)


BODIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ChatRequest": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}, ""),
    "CompletionRequest": ("/v1/completions", {"prompt": "a", "max_tokens": 2}, ""),
    "GenerateParameters": ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}}, "parameters"),
}


def edges_of_numbers() -> list[tuple[str, str, float, float | None]]:
    """Schema, name, a number beyond the range, and the number at the edge where the route takes the edge."""
    found: list[tuple[str, str, float, float | None]] = []
    for schema in BODIES:
        for name, properties in SCHEMAS[schema]["properties"].items():
            for part in properties.get("anyOf", ()):
                if "minimum" in part:
                    found.append((schema, name, part["minimum"] - 1, part["minimum"]))
                if "exclusiveMinimum" in part:
                    found.append((schema, name, part["exclusiveMinimum"], None))
                if "maximum" in part and part["maximum"] < 1000:
                    found.append((schema, name, part["maximum"] + 1, None))
    return found


@pytest.mark.parametrize(("schema", "name", "beyond", "edge"), edges_of_numbers())
def test_range_of_a_number_is_that_of_the_route(
    client: httpx.Client, schema: str, name: str, beyond: float, edge: float | None
) -> None:
    path, body, inside = BODIES[schema]

    def status(value: float) -> int:
        sent: dict[str, Any] = json.loads(json.dumps(body))
        (sent[inside] if inside else sent)[name] = value
        return client.post(path, json=sent).status_code

    assert status(beyond) in (400, 422)
    if edge is not None and name not in ("top_logprobs", "max_tokens"):  # which need another field too
        assert status(edge) == 200
