"""Public collections of JSON schemas with instances: which schemas are refused, and which instances come out.

A folder holds files of the JSON-Schema-Test-Suite (`tests/draft7`, `tests/draft2020-12`) or of JSONSchemaBench
(`maskbench/data`). The optional files of the suite are left out. An instance comes out if the grammar lets its JSON
through and the check of the answer takes it.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llguidance
from textmill_router.errors import GenerationBroke, ValidationFailed
from textmill_router.exact_json import dump_json, parse_json
from textmill_router.grammar.answer_check import check_answer
from textmill_router.grammar.request_forms import AskedGrammar, schema_grammar
from textmill_router.grammar.worker import MAX_GRAMMAR_SIZE, MAX_LEXER_STATES

DIALECTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One schema with instances, each valid or not."""

    name: str
    schema: Any
    instances: list[tuple[Any, bool]]


def cases_of(path: Path, dialect: str | None) -> Iterator[Case]:
    """The schemas of one file of either collection; `dialect` is the `$schema` of those that name none."""
    content = parse_json(path.read_text())
    for group in content if isinstance(content, list) else [content]:
        schema = group["schema"]
        if dialect is not None and isinstance(schema, dict):
            schema = {"$schema": dialect, **schema}
        name = f"{path.name}: {group['description']}"
        yield Case(name, schema, [(test["data"], test["valid"]) for test in group.get("tests", ())])


class Judge:
    """Compiles grammars over a vocabulary of bytes, under the limits of the router's compiler."""

    def __init__(self) -> None:
        self._tokenizer = llguidance.LLTokenizer("byte")
        self._limits = llguidance.LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, max_grammar_size=MAX_GRAMMAR_SIZE, verbose_errors=False
        )

    def compile(self, asked: AskedGrammar, *, closes_objects: bool) -> llguidance.LLMatcher:
        """A matcher at its beginning. Raises ValidationFailed."""
        text = asked.whole_output(closes_objects=closes_objects).text
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if not matcher.get_error():
            matcher.compute_bitmask()
        if matcher.get_error():
            raise ValidationFailed(matcher.get_error().split("\n")[0])
        return matcher


def lets_through(matcher: llguidance.LLMatcher, text: str) -> bool:
    """Whether the whole text is let through; the matcher stays at its beginning."""
    copy = matcher.deep_copy()
    written = list(text.encode())
    return copy.try_consume_tokens(written) == len(written) and copy.is_accepting()


def is_taken(asked: AskedGrammar, text: str) -> bool:
    """Whether the check takes an answer."""
    try:
        check_answer(text, asked)
    except GenerationBroke:
        return False
    return True


def outcomes(case: Case, judge: Judge, closes_objects: bool, times_s: list[float]) -> Iterator[str]:
    """The verdict on the schema and on each of its instances."""
    started_s = time.process_time()
    try:
        asked = schema_grammar(case.schema, field="response_format")
        matcher = judge.compile(asked, closes_objects=closes_objects)
    except ValidationFailed as error:
        can_match = not case.instances or any(is_valid for _, is_valid in case.instances)
        yield "schema: refused" if can_match else "schema: refused, and no instance is valid"
        if can_match:
            print(f"refused  {case.name}: {error}")
        return
    times_s.append(time.process_time() - started_s)
    yield "schema: taken"
    if asked.rules(closes_objects=closes_objects).weakened:
        yield "schema: held by grammar and check"
    for instance, is_valid in case.instances:
        text = dump_json(instance) if "." in dump_json(instance) else json.dumps(instance, ensure_ascii=False)
        passes_grammar, passes_check = lets_through(matcher, text), is_taken(asked, text)
        if not is_valid:
            wrong = passes_grammar and passes_check
            yield "invalid instance: COMES OUT" if wrong else "invalid instance: held back"
            if wrong:
                print(f"wrong    {case.name}: {text[:100]}")
        elif not passes_check:
            yield "valid instance: THE CHECK REFUSES IT"
            print(f"refuses  {case.name}: {text[:100]}")
        elif passes_grammar:
            yield "valid instance: comes out"
        else:
            yield "valid instance: the grammar writes it in another way or not at all"
            print(f"unwritten {case.name}: {text[:100]}")


def main() -> int:
    """Print what is refused, wrong or not written, then the counts. Exit code 1 if an instance came out wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--open-objects", action="store_true", help="as the server's flag")
    parser.add_argument("--sample", type=int, help="so many files, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*.json") if "optional" not in path.parts)
    if arguments.sample is not None:
        files = random.Random(arguments.seed).sample(files, min(arguments.sample, len(files)))
    judge, counts, times_s = Judge(), Counter[str](), list[float]()
    for path in files:
        for case in cases_of(path, DIALECTS.get(arguments.folder.name)):
            counts.update(outcomes(case, judge, not arguments.open_objects, times_s))
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    times_s.sort()
    p50, p99 = times_s[len(times_s) // 2], times_s[len(times_s) * 99 // 100]
    print(f"CPU time of a schema: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, max {times_s[-1] * 1e3:.1f} ms")
    return 1 if any("COMES OUT" in name or "CHECK REFUSES" in name for name in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
