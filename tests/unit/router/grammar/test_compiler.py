"""Grammars that compile, grammars that are refused with a reason, and a grammar that would never be compiled."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from textmill_router.errors import Overloaded, ShuttingDown, ValidationFailed
from textmill_router.grammar.compiler import MAX_WAITING, GrammarCompiler
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind, regex_grammar, tgi_grammar
from textmill_router.request import Grammar

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer

# An automaton with a state for each remainder.
ENDLESS = Grammar('start: %json {"type":"integer","multipleOf":99999989}')


def run(folder: Path, scenario: Callable[[GrammarCompiler], Awaitable[None]], **options: Any) -> None:
    async def with_compiler() -> None:
        write_byte_tokenizer(folder)
        compiler = GrammarCompiler(
            **{
                "tokenizer_file": str(folder / "tokenizer.json"),
                "vocab_size": 320,
                "eos_token_ids": (END_ID,),
                **options,
            }
        )
        try:
            await scenario(compiler)
        finally:
            await compiler.close()

    asyncio.run(with_compiler())


async def reason(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(ValidationFailed) as refused:
        await compiler.check(grammar)
    assert refused.value.field == "grammar"
    return str(refused.value)


def schema(text: str) -> Grammar:
    return AskedGrammar(AskedKind.JSON_SCHEMA, text).whole_output()


def regex(text: str) -> Grammar:
    return AskedGrammar(AskedKind.REGEX, text).whole_output()


def test_what_the_library_can_do_passes_and_the_rest_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        for text in ("{}", '{"type":"integer"}', '{"enum":[1,"a"]}', '{"type":"object","required":["z"]}'):
            await compiler.check(schema(text))
        for text in ("[a-c]+", "", "^a|b$", r"\p{L}{3}"):
            await compiler.check(regex(text))
        await compiler.check(Grammar('start: "a" start | "b"'))
        for grammar, words in (
            (Grammar('start: %json {"not":{"type":"string"}}'), 'Unimplemented keys: ["not"]'),
            (Grammar('start: %json {"type":5}'), "`type` must be a string or an array of strings"),
            (schema('{"type":"integer","minimum":5,"maximum":1}'), "no text matches it: "),
            (schema('{"x-guidance":{"lenient":true},"not":{}}'), "no text matches it"),
            (regex("(a"), "a regular expression is wrong at `(`: unclosed group"),
            (regex("(?=a)b"), "wrong at `(?=`: it looks at what stands around a place"),
            (regex("a^b"), "the regular expression `a^b` has a `^` or `$` inside"),
            (regex(r"a\bb"), "has a word boundary"),
            (regex("ab("), "wrong at `(`"),
            (regex("a\n("), "unclosed group"),
            (regex("é(?=a)"), "wrong at `(?=`"),
            (regex(r"[^\s\S]"), "no text matches it"),
            (regex("[a&&b]"), "no text matches it"),
            (Grammar('start: %json {"minLength":-1}'), "`minLength` must be a whole number of at least 0, found -1"),
            (Grammar('start: %json {"required":[5]}'), "each entry of `required` must be a string, found 5"),
            (Grammar('start: %json {"enum":5}'), "`enum` must be an array"),
            (regex("a\ud800"), "half a surrogate pair at character 9"),
            (Grammar("start: nobody"), "nobody"),
        ):
            assert words in await reason(compiler, grammar), grammar
        # The message leaves out the rules that the router has put around the client's grammar.
        lines = 'start: "a" answer\nanswer: %json {"type": "wat"}\nother: "b"'
        assert await reason(compiler, Grammar(lines)) == (
            "`grammar` does not compile: `wat` is no type of JSON Schema; the types are `array`, `boolean`, `integer`, "
            "`null`, `number`, `object` and `string`"
        )
        library_words = ("regex parse error", "NoExtension", "not supported yet", "f64", "(in regex)", "JSON schema:")
        for bad in [
            regex("(?=a)"),
            regex("[^\\s\\S]"),
            regex("a$b"),
            Grammar('start: %json {"minimum":"x"}'),
            Grammar('start: %json {"type":"x"}'),
        ]:
            sentence = await reason(compiler, bad)
            assert [word for word in library_words if word in sentence] == []
        told = await reason(compiler, Grammar("start: answer\nanswer: /((/"))
        assert "unclosed group" in told
        assert "start" not in told

    run(tmp_path, scenario)


def test_a_grammar_without_end_is_refused_in_time_and_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        await asyncio.gather(compiler.check(regex("a")), compiler.check(regex("aa")))  # after this both workers run
        started_s = time.monotonic()
        endless = asyncio.create_task(reason(compiler, ENDLESS))
        longest_pause_s = 0.0
        while not endless.done():
            before_s = time.monotonic()
            await asyncio.wait({endless}, timeout=0.005)
            longest_pause_s = max(longest_pause_s, time.monotonic() - before_s)
            if time.monotonic() - started_s > 0.1 and "b" not in checked:
                await compiler.check(regex("b"))  # the second worker compiles this one
                checked.add("b")
                assert not endless.done()
        assert "takes more than 1.5 s or too much memory" in await endless
        assert longest_pause_s < 1.0  # the event loop was never blocked for long
        await compiler.check(regex("c"))

    checked: set[str] = set()
    run(tmp_path, scenario, timeout_s=1.5)


def test_a_text_over_the_limit_is_refused_without_work(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        assert "at most 19 bytes, found 20" in await reason(compiler, regex("ä" * 5 + "a"))
        await compiler.check(regex("ä" * 5))

    run(tmp_path, scenario, max_bytes=19)  # `start: //` has nine bytes


def test_equal_grammars_are_compiled_once(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        await compiler.check(regex("[ab]{3}"))
        tokenizer_file.unlink()  # a new worker could not start
        await asyncio.gather(*(compiler.check(regex("[ab]{3}")) for _ in range(5)))
        assert "unclosed" in await reason(compiler, regex("("))
        assert "unclosed" in await reason(compiler, regex("("))

    tokenizer_file = tmp_path / "tokenizer.json"
    run(tmp_path, scenario)


def test_too_many_that_wait_are_sent_away(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        tasks = [asyncio.create_task(compiler.check(regex(f"a{{{n}}}"))) for n in range(1, MAX_WAITING + 1)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await compiler.check(regex("b"))
        await asyncio.gather(*tasks)
        await compiler.check(regex("b"))

    run(tmp_path, scenario)


def test_a_caller_that_leaves_does_not_stop_the_others(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        leaving = asyncio.create_task(compiler.check(regex("x{4}")))
        staying = asyncio.create_task(compiler.check(regex("x{4}")))
        await asyncio.sleep(0)
        leaving.cancel()
        await staying
        assert leaving.cancelled()

    run(tmp_path, scenario)


def test_closing_ends_those_that_wait(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        waiting = asyncio.create_task(compiler.check(ENDLESS))
        await asyncio.sleep(0)
        await compiler.close()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await compiler.check(regex("a"))

    run(tmp_path, scenario)


def test_workers_do_not_get_the_api_key_and_end_with_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        await compiler.check(regex("a"))
        found = [process for process in psutil.Process().children() if process not in before]
        assert len(found) == 1
        assert "API_KEY" not in found[0].environ()
        assert "PATH" in found[0].environ()
        workers.extend(found)

    workers: list[psutil.Process] = []
    before = psutil.Process().children()
    monkeypatch.setenv("API_KEY", "s3cret")
    run(tmp_path, scenario)
    assert not workers[0].is_running()


def test_a_server_without_grammars_says_so(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        assert "cannot be used: because" in await reason(compiler, regex("a"))

    run(tmp_path, scenario, refusal="because")


def test_a_tokenizer_that_suits_no_grammar_is_named(tmp_path: Path) -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        assert "tokenizer cannot be read" in await reason(compiler, regex("a"))

    (tmp_path / "broken.json").write_text("{}")
    run(tmp_path, scenario, tokenizer_file=str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ({"type": "json", "value": {"type": "integer"}}, AskedKind.JSON_SCHEMA, '{"type":"integer"}'),
        ({"type": "json", "value": ' {"type": "integer"}'}, AskedKind.JSON_SCHEMA, '{"type":"integer"}'),
        ({"type": "json_object", "value": {"b": 1, "a": 2}}, AskedKind.JSON_SCHEMA, '{"type":"object","b":1,"a":2}'),
        ({"type": "json_object"}, AskedKind.JSON_SCHEMA, '{"type":"object"}'),
        ({"type": "json", "value": True}, AskedKind.JSON_SCHEMA, "{}"),
        (
            {"type": "json_schema", "value": {"name": "n", "schema": {"type": "null"}, "strict": True}},
            AskedKind.JSON_SCHEMA,
            '{"type":"null"}',
        ),
        ({"type": "json_schema", "value": {"schema": {}}}, AskedKind.JSON_SCHEMA, "{}"),
        ({"type": "regex", "value": "a+"}, AskedKind.REGEX, "a+"),
    ],
)
def test_shapes_of_the_native_dialect(value: object, kind: AskedKind, text: str) -> None:
    assert tgi_grammar(value) == AskedGrammar(kind, text)


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ("a+", "grammar", "found a string"),
        ([], "grammar", "found an array"),
        ({"value": "a"}, "grammar.type", "found null"),
        ({"type": "lark", "value": "start: A"}, "grammar.type", "found `lark`"),
        ({"type": "json"}, "grammar.value", "is missing"),
        ({"type": "regex", "value": None}, "grammar.value", "is missing"),
        ({"type": "regex", "value": {}}, "grammar.value", "found an object"),
        ({"type": "json", "value": "{"}, "grammar.value", "not JSON"),
        ({"type": "json", "value": "3"}, "grammar.value", "found a number"),
        ({"type": "json", "value": False}, "grammar.value", "found false"),
        ({"type": "json", "value": "[" * 100_000}, "grammar.value", "nested too deeply"),
        ({"type": "json_schema", "value": {"name": "n"}}, "grammar.value", '"schema"'),
        ({"type": "json_schema", "value": {"schema": 5}}, "grammar.value.schema", "found a number"),
    ],
)
def test_other_shapes_are_refused_by_path(value: object, field: str, words: str) -> None:
    with pytest.raises(ValidationFailed, match=words) as refused:
        tgi_grammar(value)
    assert refused.value.field == field


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(ValidationFailed, match="half a surrogate pair at character 1") as refused:
        regex_grammar("a\ud800", field="grammar.value")
    assert refused.value.field == "grammar"


def test_null_is_no_grammar() -> None:
    assert tgi_grammar(None) is None


def test_what_is_known_of_a_grammar_is_kept_apart_by_salts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that one caller has paid for is not there for another one, and a caller has a verdict at once."""
    asked: list[str] = []

    async def scenario(compiler: GrammarCompiler) -> None:
        ask_worker = compiler._ask_worker

        async def counted(grammar: Grammar) -> tuple[str | None, bool]:
            asked.append(grammar.text)
            return await ask_worker(grammar)

        monkeypatch.setattr(compiler, "_ask_worker", counted)
        for salt, num_asked in ((b"one", 1), (b"one", 1), (b"two", 2), (b"two", 2), (b"", 3), (b"one", 3)):
            await compiler.check(regex("[a-c]+"), salt=salt)
            assert len(asked) == num_asked
        await asyncio.gather(*(compiler.check(regex("d+"), salt=salt) for salt in (b"one", b"two")))
        assert len(asked) == 5

    run(tmp_path, scenario)
