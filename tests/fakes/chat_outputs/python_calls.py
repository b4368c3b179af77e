"""Outputs whose calls are a list of Python."""

from tests.fakes.chat_outputs.output import Output


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
    _pythonic("'x' \"y\"", '"xy"'),
    _pythonic("{1, 'b'}", '[1, "b"]'),
    _pythonic("{(1, 2): ('v')}".replace("(1, 2)", "'k'"), '{"k": "v"}'),
    _pythonic("(1, (2,), ())", "[1, [2], []]"),
    _pythonic("(\n'x'\n'y'\n)", '"xy"'),
    _pythonic("0xff", "255"),
    # an argument that is no literal makes no call
    Output("[add(a=float('inf'))]", "[add(a=float('inf'))]"),
    Output("[add(a=1, b=f(2))]", "[add(a=1, b=f(2))]"),
    Output("[add(a=1), add(a=1 + 2)] so", ", add(a=1 + 2)] so", (("add", '{"a": 1}'),)),
    Output("[add(a=[x for x in y])]", "[add(a=[x for x in y])]"),
    # the model breaks something off
    Output("[add(a=1, b='x", "[add(a=1, b='x"),
    Output("Write [add(a=1, and so on.", "Write [add(a=1, and so on."),
    Output("[add(a=1), 5]", ", 5]", (("add", '{"a": 1}'),)),
    Output("[add(a=1), other(b=2)] so", ", other(b=2)] so", (("add", '{"a": 1}'),)),
    Output("[add(a=1), add(2)]", ", add(2)]", (("add", '{"a": 1}'),)),
    Output("[add(a=1, 2, b=3)]", "[add(a=1, 2, b=3)]"),
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
