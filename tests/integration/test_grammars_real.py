"""Grammars through the whole system with the demo model: the answers of `/generate` match them."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.fakes.processes import LaunchedServer
from tests.fakes.random_schemas import Schema, schemas
from tests.fakes.reading import TIMEOUT_S, Answer, generate

PROMPT = "Question: who lives next door? Answer in JSON: "
PERSON: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"enum": ["chess", "running", "cooking"]}, "maxItems": 2},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}
ADDRESS = r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"
DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.1}


def together(server: LaunchedServer, asked: Sequence[dict[str, Any]]) -> list[Answer]:
    """Send all requests at once, and return the answers."""
    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(lambda parameters: generate(server, PROMPT, **parameters), asked))


def assert_obeys(answer: Answer, schema: Schema, max_new_tokens: int) -> None:
    if answer.finish_reason == "eos_token":
        Draft202012Validator(schema).validate(json.loads(answer.text))
    else:
        assert answer.finish_reason == "length"
        assert len(answer.ids) == max_new_tokens


def test_each_kind_of_grammar_is_obeyed(real_server: LaunchedServer) -> None:
    how = {"max_new_tokens": 80}
    person = {"type": "json", "value": PERSON}
    answers = together(
        real_server,
        [
            {"grammar": person, **how},
            {"grammar": {"type": "json_schema", "value": {"name": "p", "schema": PERSON}}, **how},
            {"grammar": {"type": "json", "value": json.dumps(PERSON)}, "best_of": 2, **how, **DRAWN},
            {"grammar": {"type": "regex", "value": ADDRESS}, **how, **DRAWN, "seed": 1},
            {"grammar": person, "stop": ['"age"'], **how},
            {"grammar": person, "max_new_tokens": 5},
        ],
    )
    for answer in answers[:3]:
        assert answer.finish_reason == "eos_token"
        Draft202012Validator(PERSON).validate(json.loads(answer.text))
    assert re.fullmatch(ADDRESS, answers[3].text)
    assert answers[4].finish_reason == "stop_sequence"
    assert answers[4].text.endswith('"age"')
    assert (answers[5].finish_reason, len(answers[5].ids)) == ("length", 5)


def test_a_seeded_request_is_the_same_alone_and_among_eight_others(real_server: LaunchedServer) -> None:
    mine = {"grammar": {"type": "json", "value": PERSON}, "max_new_tokens": 60, **DRAWN, "seed": 77}
    alone = generate(real_server, PROMPT, **mine)
    others = [{**mine, "seed": seed, "min_new_tokens": 30} for seed in range(8)]
    assert together(real_server, [*others[:4], mine, *others[4:]])[4].ids == alone.ids


@settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    schema=schemas(), temperature=st.sampled_from([0.0, 0.7, 1.5]), seed=st.integers(0, 2**32), top_k=st.integers(1, 90)
)
def test_any_schema(real_server: LaunchedServer, schema: Schema, temperature: float, seed: int, top_k: int) -> None:
    grammar = {"type": "json", "value": schema}
    drawn = {} if temperature == 0 else {"temperature": temperature, "seed": seed, "top_k": top_k}
    answer = generate(real_server, PROMPT, grammar=grammar, max_new_tokens=48, **drawn)
    assert_obeys(answer, schema, 48)


def test_a_refused_grammar_disturbs_nobody(real_server: LaunchedServer) -> None:
    # Its automaton would have a state for each remainder of 9973 x 9967.
    endless = {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}
    mine = {"grammar": {"type": "json", "value": PERSON}, "max_new_tokens": 60}
    alone = generate(real_server, PROMPT, **mine)

    def refused(route: str) -> httpx.Response:
        body = {"inputs": "x", "parameters": {"grammar": {"type": "json", "value": endless}}}
        return httpx.post(f"{real_server.base_url}{route}", json=body, timeout=TIMEOUT_S, trust_env=False)

    with ThreadPoolExecutor(2) as threads:
        replies = [threads.submit(refused, route) for route in ("/generate", "/generate_stream")]
        assert generate(real_server, PROMPT, **mine).ids == alone.ids
    for reply in replies:
        assert reply.result().status_code == 422
        assert "takes more than" in reply.result().json()["error"]
