"""Outputs as models write them, each with the message that it is, written by hand from the published formats."""

from dataclasses import dataclass, replace

from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import ParsedMessage, collect
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.parsers.tools import (
    command_r,
    deepseek,
    generic_json,
    harmony,
    hermes,
    llama3_json,
    mistral,
    pythonic,
    qwen3_coder,
    tool_call_token,
)
from textmill_router.parsers.tools.tool_format import ToolFormat, ToolSpec


@dataclass(frozen=True)
class Output:
    """An output with its message. A call is (name, arguments). `is_reasoning` means that the prompt opens reasoning."""

    text: str
    content: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None
    is_reasoning: bool = False


def parse_whole(parser: ChatParser, text: str, *, was_cut: bool) -> ParsedMessage:
    """Return the message of a whole answer, by a new parser."""
    return collect([*parser.push(text), *parser.finish(was_cut)])


# The schemas matter for formats that do not write the type of a value.
_TYPES = {
    "a": {"type": "integer"},
    "flag": {"type": ["boolean", "null"]},
    "list": {"$ref": "#/$defs/numbers"},
    "map": {"type": "object"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "mixed": {"type": ["string", "integer"]},
    "any": {},
    "text": {"type": "string"},
}
_SCHEMA = {"type": "object", "properties": _TYPES, "$defs": {"numbers": {"type": "array", "items": {"type": "number"}}}}
TOOLS = (ToolSpec("weather"), ToolSpec("add", _SCHEMA), ToolSpec("say", _SCHEMA))

HERMES = [
    Output(
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        None,
        (("weather", '{"city": "Oslo"}'),),
    ),
    Output(
        'I will look.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\nOne moment.',
        "I will look.\nOne moment.",
        (("weather", '{"city": "Oslo"}'),),
    ),
    Output(
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
        '<tool_call>{"name":"say","arguments":{}}</tool_call>',
        None,
        (("add", '{"a": 1}'), ("add", '{"a": 2}'), ("say", "{}")),
    ),
    Output(
        '<tool_call>{"name": "add", "arguments": {"a": {"b": [1, {"c": []}, "}]"]}, "d": {}}}</tool_call>',
        None,
        (("add", '{"a": {"b": [1, {"c": []}, "}]"]}, "d": {}}'),),
    ),
    Output(
        r'<tool_call>{"name": "say", '
        r'"arguments": {"text": "a \"quoted\" \\ back\\slash\n </tool_call> <tool_call>"}}</tool_call>',
        None,
        (("say", r'{"text": "a \"quoted\" \\ back\\slash\n </tool_call> <tool_call>"}'),),
    ),
    Output(
        '<tool_call>{"name": "say", '
        '"arguments": {"text": "東京 \N{GRINNING FACE} é", "k\u00fc": "\\u00e9\\ud83d\\ude00"}}</tool_call> 終わり',
        "終わり",
        (("say", '{"text": "東京 \N{GRINNING FACE} é", "k\u00fc": "\\u00e9\\ud83d\\ude00"}'),),
    ),
    # arguments first; further keys; the name with an escape
    Output(
        '<tool_call>{"id": 7, "arguments": {"x": null}, "extra": [{"name": "no"}], "name": "s\\u0061y"}</tool_call>',
        None,
        (("say", '{"x": null}'),),
    ),
    # arguments as a string that holds the object, as OpenAI's protocol writes arguments
    Output(
        r'<tool_call>{"name": "say", "arguments": "{\"text\": \"\\u00e9 \ud83d\ude00\\n\"}"}</tool_call>',
        None,
        (("say", '{"text": "\\u00e9 \N{GRINNING FACE}\\n"}'),),
    ),
    Output('<tool_call>{"name": "say"}</tool_call>', None, (("say", "{}"),)),
    Output('<tool_call>{"name": "say", "arguments": null}</tool_call>', None, (("say", "{}"),)),
    Output(
        '<tool_call>{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}</tool_call>',
        None,
        (("add", '{"a": 1}'),),
    ),
    Output('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, (("unknown", "{}"),)),
    Output(
        '<tool_call>[{"name": "add", "arguments": {}}, {"name": "say", "arguments": {}}]</tool_call>',
        None,
        (("add", "{}"), ("say", "{}")),
    ),
    # the model forgets or doubles something
    Output('<tool_call>{"name": "add", "arguments": {"a": 1}\n</tool_call>', None, (("add", '{"a": 1}'),)),
    Output('<tool_call>{"name": "add", "arguments": {"a": 1}}}\n</tool_call>', None, (("add", '{"a": 1}'),)),
    Output('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call> so', "so", (("add", '{"a": 1'),)),
    Output('<tool_call>{"name": "add", "arguments": {"a": 1}}', None, (("add", '{"a": 1}'),)),
    Output(
        '<tool_call>{"name": "add", "arguments": {"a": 1}}<tool_call>{"name": "say", "arguments": {}}</tool_call>',
        None,
        (("add", '{"a": 1}'), ("say", "{}")),
    ),
    # no calls: everything is text, character for character
    Output(
        '  Just <b>text</b>, 1 < 2 and {"name": "add", "arguments": {}} <tool_calls> \n',
        '  Just <b>text</b>, 1 < 2 and {"name": "add", "arguments": {}} <tool_calls> \n',
    ),
    Output("<tool_call>\nadd(1, 2)\n</tool_call>", "<tool_call>\nadd(1, 2)\n</tool_call>"),
    Output('<tool_call>{"nome": "add"}</tool_call>', '<tool_call>{"nome": "add"}</tool_call>'),
    Output(
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>', '<tool_call>{"name": 5, "arguments": {}}</tool_call>'
    ),
    Output(
        '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>',
    ),
    Output(
        '<tool_call>{"name": "add", "arguments": "no object"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "no object"}</tool_call>',
    ),
    Output(
        '<tool_call>{"name <tool_call>{<<tool_call>{"name": "add", "arguments": {}}</tool_call>',
        '<tool_call>{"name <tool_call>{<<tool_call>{"name": "add", "arguments": {}}</tool_call>',
    ),
    Output('<<tool_call><tool_call>{"name": "add", "arguments": {}}</tool_call>', "<<tool_call>", (("add", "{}"),)),
]

LLAMA3_JSON = [
    Output('{"name": "weather", "parameters": {"city": "Oslo"}}', None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}', None, (("weather", '{"city": "Oslo"}'),)
    ),
    Output(
        '\n\n{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}\n',
        None,
        (("weather", '{"city": "Oslo"}'),),
    ),
    Output(
        '{"name": "add", "parameters": {"a": 1}}; {"name": "say", "parameters": {"text": "x;y"}}',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": "x;y"}')),
    ),
    Output(
        '<|python_tag|>{"name": "add", "parameters": {}};\n<|python_tag|>{"name": "say", "parameters": {}}',
        None,
        (("add", "{}"), ("say", "{}")),
    ),
    Output(
        'Let me see: {"name": "add", "parameters": {"a": [{}, {"b": "}"}]}} There.',
        "Let me see: There.",
        (("add", '{"a": [{}, {"b": "}"}]}'),),
    ),
    Output(
        r'{"name": "say", "parameters": {"text": "\"\\\" {\u007d <|python_tag|>"}}',
        None,
        (("say", r'{"text": "\"\\\" {\u007d <|python_tag|>"}'),),
    ),
    Output(
        '{"name": "say", "parameters": {"text": "Ελλάδα \N{THUMBS UP SIGN}"}}',
        None,
        (("say", '{"text": "Ελλάδα \N{THUMBS UP SIGN}"}'),),
    ),
    Output('{"parameters": {"a": 2}, "name": "add"}', None, (("add", '{"a": 2}'),)),
    Output('{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}', None, (("add", '{"a": 1}'),)),
    Output('{"function": "add", "parameters": {"a": 1}}', None, (("add", '{"a": 1}'),)),
    Output('<|python_tag|>{"name": "unknown", "parameters": {}}', None, (("unknown", "{}"),)),
    # answers that are JSON, but no call
    Output('{"name": "Ada", "parameters": {"city": "Oslo"}}', '{"name": "Ada", "parameters": {"city": "Oslo"}}'),
    Output('{"name": "weather", "description": "of today"}', '{"name": "weather", "description": "of today"}'),
    Output(' {"answer": {"name": 1}} {} {{', ' {"answer": {"name": 1}} {} {{'),
    Output("<|python_tag|>import os; os.getcwd()", "<|python_tag|>import os; os.getcwd()"),
    Output('{"name": "add", "parameters": 5}', '{"name": "add", "parameters": 5}'),
    Output('{"name": "add", "parameters": {"a": 1}} ; and so on', "; and so on", (("add", '{"a": 1}'),)),
    Output("text only; a < b; <|python_ta|>", "text only; a < b; <|python_ta|>"),
]

MISTRAL = [
    Output(
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]', None, (("weather", '{"city": "Oslo"}'),)
    ),
    Output(
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, '
        '{"name": "say", "arguments": {"text": "x"}, "id": "abcdefghi"}]',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": "x"}')),
    ),
    Output('[TOOL_CALLS]weather{"city": "Oslo"}', None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]say{"text": "[TOOL_CALLS]"}',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": "[TOOL_CALLS]"}')),
    ),
    Output('[TOOL_CALLS]add[ARGS]{"a": {"b": [1, [2]]}}', None, (("add", '{"a": {"b": [1, [2]]}}'),)),
    Output(
        '[TOOL_CALLS]add[CALL_ID]a1B2c3D4e[ARGS]{"a": 1}[TOOL_CALLS]say[CALL_ID]123456789[ARGS]{}',
        None,
        (("add", '{"a": 1}'), ("say", "{}")),
    ),
    Output(
        'I look [1] and see.\n[TOOL_CALLS] [{"name": "add", "arguments": {}}] Done.',
        "I look [1] and see. Done.",
        (("add", "{}"),),
    ),
    Output('Both: [TOOL_CALLS]add{"a": 1}\nafter', "Both:\nafter", (("add", '{"a": 1}'),)),
    Output(r'[TOOL_CALLS]say{"text": "\"}\\\"{ \u00e9"}', None, (("say", r'{"text": "\"}\\\"{ \u00e9"}'),)),
    Output(
        '[TOOL_CALLS][{"name": "say", "arguments": {"text": "日本 \N{GRINNING FACE}"}}]',
        None,
        (("say", '{"text": "日本 \N{GRINNING FACE}"}'),),
    ),
    Output('[TOOL_CALLS]{"name": "add", "arguments": {"a": 1}}', None, (("add", '{"a": 1}'),)),
    Output(
        '[TOOL_CALLS][{"arguments": {"a": 1}, "name": "add"},{"name": "say", "arguments": "{\\"text\\": 1}"}]',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": 1}')),
    ),
    Output('[TOOL_CALLS] add {"a": 1}', None, (("add", '{"a": 1}'),)),
    # malformed
    Output("[TOOL_CALLS] I call add now", "[TOOL_CALLS] I call add now"),
    Output("[TOOL_CALLS]add(1)", "[TOOL_CALLS]add(1)"),
    Output('[TOOL_CALLS]add[TOOL_CALLS]say{"a": 1}', "[TOOL_CALLS]add", (("say", '{"a": 1}'),)),
    Output('[TOOL_CALLS]add[OTHER]{"a": 1}', '[TOOL_CALLS]add[OTHER]{"a": 1}'),
    Output('[TOOL_CALLS][{"nome": "add"}]', '[TOOL_CALLS][{"nome": "add"}]'),
    Output('[TOOL_CALLS][{"name": "add", "arguments": {}}, 5]', ", 5]", (("add", "{}"),)),
    Output('[[TOOL_CALLS]add{"a": 1}', "[", (("add", '{"a": 1}'),)),
    Output("a[0] = [TOOL] [", "a[0] = [TOOL] ["),
]

JSON = [
    Output('{"name": "weather", "arguments": {"city": "Oslo"}}', None, (("weather", '{"city": "Oslo"}'),)),
    Output('{"name": "weather", "parameters": {"city": "Oslo"}}', None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        '[{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {"text": "x"}}]',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": "x"}')),
    ),
    Output(
        '{"name": "add", "arguments": {"a": 1}}\n{"name": "say", "arguments": {}}',
        None,
        (("add", '{"a": 1}'), ("say", "{}")),
    ),
    Output(
        'Sure! See [1].\n\n[ {"name": "add", "arguments": {"a": [[]]}} ]\n\nDone.',
        "Sure! See [1].\n\nDone.",
        (("add", '{"a": [[]]}'),),
    ),
    Output('{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}', None, (("add", '{"a": 1}'),)),
    Output(
        '[{"id": "x", "type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]',
        None,
        (("add", '{"a": 1}'),),
    ),
    Output(r'{"name": "say", "arguments": {"text": "\\\"{[\u2603"}}', None, (("say", r'{"text": "\\\"{[\u2603"}'),)),
    Output(
        '{"name": "say", "arguments": {"text": "नमस्ते \N{THUMBS UP SIGN}"}}',
        None,
        (("say", '{"text": "नमस्ते \N{THUMBS UP SIGN}"}'),),
    ),
    Output('```json\n{"name": "add", "arguments": {"a": 1}}\n```', "```json\n```", (("add", '{"a": 1}'),)),
    Output('{"arguments": {"a": {"name": "say"}}, "name": "add"}', None, (("add", '{"a": {"name": "say"}}'),)),
    Output('{"name": "add"}', None, (("add", "{}"),)),
    # no calls
    Output('{"name": "Ada", "arguments": {}}', '{"name": "Ada", "arguments": {}}'),
    Output('[1, 2, {"name": "add"}', "[1, 2,", (("add", "{}"),)),
    Output('{"title": "add", "name": "add"}', '{"title": "add", "name": "add"}'),
    Output('{"name": "add", "arguments": [1]}', '{"name": "add", "arguments": [1]}'),
    Output('{"name": "add" "arguments": {}}', '{"name": "add" "arguments": {}}'),
    Output("[[{{", "[[{{"),
    Output('{"name": "add", "arguments": {}} ] so', "] so", (("add", "{}"),)),
    # halves of a surrogate pair that stand alone
    Output(
        r'{"name": "say", "arguments": "{\"text\": \"\ud83dx\ude00\ud83d\""}',
        None,
        (("say", '{"text": "\ufffdx\ufffd\ufffd"'),),
    ),
    Output('{"function": {"function": {"name": "add"}}}', '{"function": {"function": {"name": "add"}}}'),
    Output('{"name": "say", "arguments": " \\n {\\"text\\": 1}"}', None, (("say", '{"text": 1}'),)),
    Output('[{"name": "add", "arguments": {}}, {"x": 1}]', ', {"x": 1}]', (("add", "{}"),)),
]


def _coder_call(name: str, *given: tuple[str, str]) -> str:
    """A call between its tags, as Qwen3-Coder's template writes it."""
    lines = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given]
    return f"<function={name}>\n{''.join(lines)}</function>"


def _coder(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


_SAY_X = _coder_call("say", ("text", "x"))
_SAID_X = ("say", '{"text": "x"}')
# The text of a parameter, the key of its type in `_TYPES`, and the JSON text that it is.
_CODER_VALUES = [
    # lines, quotes, tags and signs of a text; one new line on each side is the format's
    ("text", '\n if a < b:\n\tx = <b> + "', r'"\n if a < b:\n\tx = <b> + \""'),
    ("text", "a\\n\n\n", r'"a\\n\n\n"'),
    ("text", "", '""'),
    ("text", "東京 \N{GRINNING FACE} </paramete </function>", '"東京 \N{GRINNING FACE} </paramete </function>"'),
    ("text", "null", '"null"'),
    # values by their types
    ("a", "5", "5"),
    ("a", " -5e3 ", "-5e3"),
    ("flag", "True", "true"),
    ("flag", "false", "false"),
    ("flag", "None", "null"),
    ("list", "[1, 2.5]", "[1, 2.5]"),
    ("map", '{\n "a": null}', '{\n "a": null}'),
    ("map", r'{"x": "</parameter>\"<"}', r'{"x": "</parameter>\"<"}'),
    ("maybe", "null", "null"),
    ("maybe", "None", "null"),
    ("maybe", "nullable", '"nullable"'),
    ("maybe", "nul", '"nul"'),
    ("maybe", "", '""'),
    ("mixed", "5", "5"),
    ("mixed", "5 a", '"5 a"'),
    ("mixed", "true", '"true"'),
    ("mixed", '"5"', '"5"'),
    ("any", "true", "true"),
    ("any", "so", '"so"'),
    ("other", "5", '"5"'),  # the schema does not have this parameter
    # texts that are no values of their types
    ("a", "five", '"five"'),
    ("a", "NaN", '"NaN"'),
    ("list", "[1, ", '"[1, "'),
    ("map", '{"a": "b', r'"{\"a\": \"b"'),
]

QWEN3_CODER = [
    *(
        Output(
            _coder(_coder_call("add", (key, value), ("text", "x"))),
            None,
            (("add", f'{{"{key}": {json}, "text": "x"}}'),),
        )
        for key, value, json in _CODER_VALUES
    ),
    Output(_coder(_coder_call("weather", ("city", "Oslo"))), None, (("weather", '{"city": "Oslo"}'),)),
    Output(_coder(_coder_call("weather", ("days", "5"))), None, (("weather", '{"days": "5"}'),)),
    Output(
        f"I will look.\n\n{_coder(_coder_call('add', ('a', '5'), ('flag', 'True')), _SAY_X)}\nOne moment.",
        "I will look.\nOne moment.",
        (("add", '{"a": 5, "flag": true}'), _SAID_X),
    ),
    Output(_coder("<function=say>\n<parameter=text></parameter>\n</function>"), None, (("say", '{"text": ""}'),)),
    Output(_coder("<function=say><parameter=text>x</parameter></function>"), None, (_SAID_X,)),
    Output(_coder("<function=say>\n</function>"), None, (("say", "{}"),)),
    Output(_coder(_coder_call("unknown", ("k", "v"))), None, (("unknown", '{"k": "v"}'),)),
    Output(_coder("<function=add>\n</function>\n" + _SAY_X), None, (("add", "{}"), _SAID_X)),
    # the model forgets something
    Output(f"{_SAY_X}\n</tool_call>", None, (_SAID_X,)),
    Output(f"So:\n{_SAY_X} done", "So: done", (_SAID_X,)),
    Output("<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n</tool_call> so", "so", (_SAID_X,)),
    Output("<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\noh <b>", "oh <b>", (_SAID_X,)),
    Output("<tool_call><tool_call>\n<function=say></function></tool_call>", "<tool_call>", (("say", "{}"),)),
    Output("<<tool_call>\n<<function=say></function>", "<<tool_call>\n<", (("say", "{}"),)),
    Output("<function=say>\n<parameter=te\nxt>", "<parameter=te\nxt>", (("say", "{}"),)),
    # no calls: everything is text, character for character
    Output(
        "  Just <b>text</b>, 1 < 2, <function=other> <function> <functions=say> <tool_calls> \n",
        "  Just <b>text</b>, 1 < 2, <function=other> <function> <functions=say> <tool_calls> \n",
    ),
    Output("<tool_call>\nadd(1, 2)\n</tool_call>", "<tool_call>\nadd(1, 2)\n</tool_call>"),
    Output("<tool_call>\n<function=>\n</function>", "<tool_call>\n<function=>\n</function>"),
    Output("<tool_call>\n<function=a\nb>", "<tool_call>\n<function=a\nb>"),
    Output("a </tool_call> <parameter=x>", "a </tool_call> <parameter=x>"),
]


def _pythonic(value: str, json: str) -> Output:
    return Output(f"[add(a={value}, text='x')]", None, (("add", f'{{"a": {json}, "text": "x"}}'),))


PYTHONIC = [
    Output("[weather(city='Oslo')]", None, (("weather", '{"city": "Oslo"}'),)),
    Output('<|python_start|>[weather(city="Oslo")]<|python_end|>', None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        "[add(a=1, flag=True), say(text='x', list=[1, 2.5, None]), weather()]",
        None,
        (("add", '{"a": 1, "flag": true}'), ("say", '{"text": "x", "list": [1, 2.5, null]}'), ("weather", "{}")),
    ),
    Output("Let me look.\n\n[add(a=1)]\nDone.", "Let me look.\nDone.", (("add", '{"a": 1}'),)),
    Output("[add(a=1)]\n[add(a=2)]", None, (("add", '{"a": 1}'), ("add", '{"a": 2}'))),
    Output("[add(a=1)] [] [,]", "[] [,]", (("add", '{"a": 1}'),)),
    Output("<|python_start|>[add(a=1)] <|python_start|>[]", "<|python_start|>[]", (("add", '{"a": 1}'),)),
    Output(" [ add ( a = 1 , ) , ]", None, (("add", '{"a": 1}'),)),
    Output("<|python_start|> [unknown.tool(k='v')] <|python_end|> so", "so", (("unknown.tool", '{"k": "v"}'),)),
    _pythonic("-5", "-5"),
    _pythonic("1_000.50", "1000.50"),
    _pythonic("None", "null"),
    _pythonic(r"""'it\'s "so"\n'""", r'"it\'s \"so\"\n"'.replace(r"\'", "'")),
    _pythonic('"東京 \N{GRINNING FACE} [weather()] ), \\\\"', '"東京 \N{GRINNING FACE} [weather()] ), \\\\"'),
    _pythonic("''", '""'),
    _pythonic("'''two\n'lines\"'''", '"two\\n\'lines\\""'),
    _pythonic("{'k': [True, {}], \"l\": 'v'}", '{"k": [true, {}], "l": "v"}'),
    _pythonic("[[], ['a',]]", '[[], ["a"]]'),
    _pythonic("celsius", '"celsius"'),
    _pythonic("null", "null"),
    # the model breaks something off
    Output("[add(a=1, b=f(2))]", "(2))]", (("add", '{"a": 1, "b": "f"'),)),
    Output("[add(a=1), 5]", ", 5]", (("add", '{"a": 1}'),)),
    Output("[add(a=1), other(b=2)] so", ", other(b=2)] so", (("add", '{"a": 1}'),)),
    Output("[add(a=1), add(2)]", ", add(2)]", (("add", '{"a": 1}'),)),
    Output("[add(a=1, 2, b=3)]", "2, b=3)]", (("add", '{"a": 1'),)),
    Output("[add(a=1) so", "so", (("add", '{"a": 1}'),)),
    Output("<|python_start|><|python_start|>[add()]", "<|python_start|>", (("add", "{}"),)),
    Output("[[add()]]", "[]", (("add", "{}"),)),
    Output("[add(a=1)]<|python_end", None, (("add", '{"a": 1}'),)),
    # no calls: everything is text, character for character
    Output(" [1] [add] [add](http://x) [other(a=1)] a[0] ", " [1] [add] [add](http://x) [other(a=1)] a[0] "),
    Output("[add(1)] [add(a)] ", "[add(1)] [add(a)] "),
    Output("add(a=1)", "add(a=1)"),
    Output("<|python_start|>add(a=1)<|python_end|>", "<|python_start|>add(a=1)<|python_end|>"),
    Output("[add(a==1", "[add(a==1"),
    Output("a < b <|python_ <|python_end|>", "a < b <|python_ <|python_end|>"),
]

_ANALYSIS, _FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_NEXT = "<|end|><|start|>assistant"


def _channel_call(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


HARMONY = [
    # the examples of the published description
    Output(
        f'{_ANALYSIS}User asks: "What is 2 + 2?" Simple.{_NEXT}{_FINAL}2 + 2 = 4.',
        "2 + 2 = 4.",
        (),
        'User asks: "What is 2 + 2?" Simple.',
    ),
    Output(
        f'{_ANALYSIS}Need to use weather.{_NEXT}{_channel_call("weather", """{"location":"San Francisco"}""")}',
        None,
        (("weather", '{"location":"San Francisco"}'),),
        "Need to use weather.",
    ),
    Output(
        f"{_ANALYSIS}Long.{_NEXT}<|channel|>commentary<|message|>**Plan**:\n1. Add{_NEXT}"
        '<|channel|>commentary to=functions.add<|constrain|>json<|message|>{"a": 1}<|call|>',
        "**Plan**:\n1. Add",
        (("add", '{"a": 1}'),),
        "Long.",
    ),
    # the recipient before the channel, as the published template writes calls
    Output(
        ' to=functions.say<|channel|>commentary json<|message|>{"text": "<|end|> \\" }"}<|call|>',
        None,
        (("say", '{"text": "<|end|> \\" }"}'),),
    ),
    Output(
        f'{_ANALYSIS}A.{_NEXT}{_ANALYSIS}B.{_NEXT} to=functions.say<|channel|>commentary<|message|>{{"text": [[]]}}',
        None,
        (("say", '{"text": [[]]}'),),
        "A.\nB.",
    ),
    # several calls; one of them in the channel of thoughts
    Output(
        f'{_channel_call("add", """{"a": 1}""")}<|call|><|start|>assistant<|channel|>analysis to=functions.add '
        '<|constrain|>json<|message|>\n{"a": 2}\n<|call|>',
        None,
        (("add", '{"a": 1}'), ("add", '{"a": 2}')),
    ),
    Output(f"{_channel_call('weather', '')}<|call|>", None, (("weather", "{}"),)),
    Output(f"{_channel_call('unknown', '{}')}", None, (("unknown", "{}"),)),
    Output('<|channel|>commentary to=add <|constrain|>json<|message|>{"a": 1}', None, (("add", '{"a": 1}'),)),
    # tools that the server does not have
    Output("<|channel|>analysis to=python code<|message|>print(1)<|call|>", None, (), "print(1)"),
    # the model leaves something out
    Output(
        f'{_ANALYSIS}Hm.<|start|>assistant{_channel_call("add", """{"a": 1}}""")} so',
        "} so",
        (("add", '{"a": 1}'),),
        "Hm.",
    ),
    Output(f"{_ANALYSIS}Hm.{_FINAL}Yes < no <|endless|>.", "Yes < no <|endless|>.", (), "Hm."),
    Output(f"{_ANALYSIS}東京 \N{GRINNING FACE}\n\n{_NEXT}{_FINAL}\né ", "\né ", (), "東京 \N{GRINNING FACE}"),
    Output(f'{_channel_call("add", """{"a": 1""")}<|call|>{_FINAL}so', "so", (("add", '{"a": 1'),)),
    # no channels: everything is text, character for character
    Output('Hello! < <| {"name": "add"} [1] ', 'Hello! < <| {"name": "add"} [1] '),
    Output(" total <tool_call> ", " total <tool_call> "),
]


def _v31(*calls: tuple[str, str]) -> str:
    written = [f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>" for name, arguments in calls]
    return f"<｜tool▁calls▁begin｜>{''.join(written)}<｜tool▁calls▁end｜>"


def _v3(*calls: tuple[str, str]) -> str:
    written = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    ]
    return f"<｜tool▁calls▁begin｜>{chr(10).join(written)}<｜tool▁calls▁end｜>"


_TWO = (("add", '{"a": 1}'), ("say", '{"text": "</｜tool▁sep｜>\\" ```"}'))
DEEPSEEK = [
    Output(_v31(_TWO[0]), None, _TWO[:1]),
    Output(_v3(_TWO[0]), None, _TWO[:1]),
    Output(_v31(*_TWO), None, _TWO),
    Output(_v3(*_TWO), None, _TWO),
    Output(f"I look.\n\n{_v31(*_TWO)}\nDone.", "I look.\nDone.", _TWO),
    Output(f"I look.\n{_v3(*_TWO)}\n", "I look.", _TWO),
    Output(_v31(("unknown", "{}"), ("function", "{}")), None, (("unknown", "{}"), ("function", "{}"))),
    # the model leaves something out
    Output(_v31(_TWO[0]).removesuffix("<｜tool▁calls▁end｜>"), None, _TWO[:1]),
    Output(_v31(_TWO[0]).removeprefix("<｜tool▁calls▁begin｜>"), None, _TWO[:1]),
    Output(_v31(("add", "")), None, (("add", "{}"),)),
    Output(_v31(("add", '{"a": 1}}')) + " so", "so", (("add", '{"a": 1}'),)),
    Output('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1 so', None, (("add", '{"a": 1 so'),)),
    Output('<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": [<1<｜tool▁call▁end｜> so', "so", (("add", '{"a": [<1'),)),
    # no calls: everything is text, character for character
    Output(
        "a < b <｜tool <｜tool▁sep｜> <｜tool▁calls▁end｜> ```json\n{}\n``` ",
        "a < b <｜tool <｜tool▁sep｜> <｜tool▁calls▁end｜> ```json\n{}\n``` ",
    ),
    Output(
        "<｜tool▁calls▁begin｜> so <｜tool▁call▁begin｜>add(1)", "<｜tool▁calls▁begin｜> so <｜tool▁call▁begin｜>add(1)"
    ),
    Output("<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"),
]

COMMAND_R = [
    Output(
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}}\n]<|END_ACTION|>',
        None,
        (("add", '{"a": 1}'),),
    ),
    Output(
        'I look.<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}},\n'
        '    {"tool_call_id": "1", "tool_name": "say", "parameters": {"text": "<|END_ACTION|>"}}\n]<|END_ACTION|>',
        "I look.",
        (("add", '{"a": 1}'), ("say", '{"text": "<|END_ACTION|>"}')),
    ),
    Output("<|START_ACTION|>add(1) <|END", "<|START_ACTION|>add(1) <|END"),
    Output('{"tool_name": "add", "parameters": {}} < ', '{"tool_name": "add", "parameters": {}} < '),
]

TOOL_CALL_TOKEN = [
    Output('<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]', None, (("add", '{"a": 1}'),)),
    Output(
        '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {}}]',
        None,
        (("add", '{"a": 1}'), ("say", "{}")),
    ),
    Output(
        'I look. <|tool_call|>{"name": "add", "arguments": {"a": 1}}<|/tool_call|>'
        '<|tool_call|>{"name": "say", "arguments": {"text": "<|/tool_call|>"}}<|/tool_call|>',
        "I look.",
        (("add", '{"a": 1}'), ("say", '{"text": "<|/tool_call|>"}')),
    ),
    Output("<|tool_call|>add(1) <|tool", "<|tool_call|>add(1) <|tool"),
    Output('{"name": "add", "arguments": {}} < <tool_call> ', '{"name": "add", "arguments": {}} < <tool_call> '),
]

# Where no tool may be called.
HARMONY_ALONE = [
    Output(f"{_FINAL}Hello.", "Hello."),
    Output(f"{_ANALYSIS}Hm.{_NEXT}{_FINAL}Yes.", "Yes.", (), "Hm."),
    Output(
        "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|message|>Then.<|return|>", "First.\nThen."
    ),
]

# With the tools of HERMES.
THINK = [
    Output("<think>\nIt rains.\n</think>\n\nTake a coat.", "Take a coat.", (), "It rains."),
    Output("It rains.\n\nStill.\n</think>\n\nTake a coat.", "Take a coat.", (), "It rains.\n\nStill.", True),
    Output("<think>It rains.</think>Take a coat.", "Take a coat.", (), "It rains.", True),
    Output("<think>\n\n</think>\n\nNo thoughts.", "No thoughts."),
    Output("</think>\nNo thoughts.", "No thoughts.", (), None, True),
    Output(
        '<think>call <tool_call>{"name": "add"}</tool_call>?</think>\n'
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        None,
        (("add", '{"a": 1}'),),
        'call <tool_call>{"name": "add"}</tool_call>?',
    ),
    Output("<think>a < b </ c </thin d</think>x", "x", (), "a < b </ c </thin d"),
    Output(" \n<think>never ends < ", None, (), "never ends <"),
    Output("  plain <think>later</think> text ", "  plain <think>later</think> text "),
    Output("<thinking>other</thinking>", "<thinking>other</thinking>"),
    Output('<tool_call>{"name": "add", "arguments": {}}</tool_call>', None, (("add", "{}"),)),
    Output("<think>東京 \N{GRINNING FACE}\n\n</think> \n é", "é", (), "東京 \N{GRINNING FACE}"),
    Output("<think>a</think>b</think>c<think>d", "b</think>c<think>d", (), "a"),
    Output("", None, (), None, True),
]


def _in_mistral_tags(text: str) -> str:
    return text.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")


MISTRAL_THINK = [
    replace(
        output,
        text=_in_mistral_tags(output.text),
        content=None if output.content is None else _in_mistral_tags(output.content),
    )
    for output in THINK
]

ALL: list[tuple[ToolFormat, ReasoningFormat | None, Output]] = [
    *((hermes.HERMES, None, output) for output in HERMES),
    *((llama3_json.LLAMA3_JSON, None, output) for output in LLAMA3_JSON),
    *((mistral.MISTRAL, None, output) for output in MISTRAL),
    *((generic_json.GENERIC_JSON, None, output) for output in JSON),
    *((qwen3_coder.QWEN3_CODER, None, output) for output in QWEN3_CODER),
    *((pythonic.PYTHONIC, None, output) for output in PYTHONIC),
    *((harmony.HARMONY, None, output) for output in HARMONY),
    *((command_r.COMMAND_R, None, output) for output in COMMAND_R),
    *((tools, None, output) for tools in (deepseek.DEEPSEEK_V3, deepseek.DEEPSEEK_V31) for output in DEEPSEEK),
    *(
        (tools, None, output)
        for tools in (tool_call_token.PHI4_MINI, tool_call_token.GRANITE)
        for output in TOOL_CALL_TOKEN
    ),
    *((harmony.HARMONY, ReasoningFormat.HARMONY, output) for output in HARMONY_ALONE),
    *((hermes.HERMES, ReasoningFormat.THINK, output) for output in THINK),
    *((hermes.HERMES, ReasoningFormat.MISTRAL, output) for output in MISTRAL_THINK),
]
