"""Outputs whose calls write each parameter in a tag of its own."""

from tests.fakes.chat_outputs.output import Output

# The key of a parameter's type in `_TYPES`, its text, and the JSON text that it is.
_VALUES = [
    ("text", "", '""'),
    ("text", "null", '"null"'),
    # values by their types
    ("a", "5", "5"),
    ("a", " -5e3 ", "-5e3"),
    ("flag", "True", "true"),
    ("flag", "false", "false"),
    ("flag", "None", "null"),
    ("list", "[1, 2.5]", "[1, 2.5]"),
    ("map", '{\n "a": null}', '{\n "a": null}'),
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
]


def _coder_call(name: str, *given: tuple[str, str]) -> str:
    """A call between its tags, as Qwen3-Coder's template writes it."""
    lines = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given]
    return f"<function={name}>\n{''.join(lines)}</function>"


def _coder(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


_SAY_X = _coder_call("say", ("text", "x"))
_SAID_X = ("say", '{"text": "x"}')
# Texts that are on lines of their own in Qwen3-Coder's form; one new line on each side is the format's.
_CODER_VALUES = [
    ("text", '\n if a < b:\n\tx = <b> + "', r'"\n if a < b:\n\tx = <b> + \""'),
    ("text", "a\\n\n\n", r'"a\\n\n\n"'),
    ("text", "東京 \N{GRINNING FACE} </paramete </function>", '"東京 \N{GRINNING FACE} </paramete </function>"'),
    ("text", "</function>\n</tool_call>\nso", r'"</function>\n</tool_call>\nso"'),
    ("text", "</tool_call></function>", '"</tool_call></function>"'),
    ("map", r'{"x": "</parameter>\"<"}', r'{"x": "</parameter>\"<"}'),
    ("map", '{"a": "b', r'"{\"a\": \"b"'),
    *_VALUES,
]

# Prose may quote a part of a call, with or without the tags.
_QUOTED = [
    "Use `<function=say>` to speak.",
    "Write <function=say>\n<parameter=text>\nx and so on.",
    "Write <function=say>\n<parameter=text>\nx\n</parameter>\n and <b>so</b> on.",
    "Write <function=say>\n<parameter=text>\nx\n</parameter>\n",
    "<tool_call>\n<function=say>\nor so",
    "<function=say> speaks",
]
QWEN3_CODER = [
    *(Output(text, text) for text in _QUOTED),
    Output(f"Look: `{_SAY_X}`.", "Look: ``.", (_SAID_X,)),
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
    Output("<function=say>\n<parameter=te\nxt>", "<parameter=te\nxt>", (("say", "{}"),), has_broken_call=True),
    Output("<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n", None, (_SAID_X,)),
    # the tags at the end stand without the closing tag of the value, or the value breaks off
    Output("<tool_call>\n<function=say>\n<parameter=text>\nx\n</function>\n</tool_call>", None, (_SAID_X,)),
    Output("<tool_call>\n<function=say>\n<parameter=text>\nx\n</tool_call>\n", None, (_SAID_X,)),
    Output("<tool_call>\n<function=add>\n<parameter=a>\n5\n</function>", None, (("add", '{"a": 5}'),)),
    Output(
        "<tool_call>\n<function=say>\n<parameter=text>\nx </parameter",
        None,
        (("say", '{"text": "x </parameter'),),
        has_broken_call=True,
    ),
    Output("<tool_call>\n<function=add>\n<parameter=a>\n5", None, (("add", '{"a": '),), has_broken_call=True),
    Output("<tool_call>\n<function=add>\n<parameter=a", None, (("add", "{"),), has_broken_call=True),
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


def _invoke(name: str, *given: tuple[str, str]) -> str:
    """A call, as the template of MiniMax M2 writes it."""
    lines = [f'<parameter name="{key}">{value}</parameter>\n' for key, value in given]
    return f'<invoke name="{name}">\n{"".join(lines)}</invoke>\n'


def _minimax(*calls: str) -> str:
    return f"<minimax:tool_call>\n{''.join(calls)}</minimax:tool_call>"


# Texts that stand between their tags as they are.
_PLAIN_TEXTS = [
    ("text", '\n if a < b:\n\tx = <b> + "\n', r'"\n if a < b:\n\tx = <b> + \"\n"'),
    ("text", "\n", r'"\n"'),
    ("text", " 東京 \N{GRINNING FACE} ", '" 東京 \N{GRINNING FACE} "'),
]
MINIMAX_M2 = [
    *(
        Output(
            _minimax(_invoke("add", (key, value), ("text", "x"))),
            None,
            (("add", f'{{"{key}": {json}, "text": "x"}}'),),
        )
        for key, value, json in [
            ("text", "</invoke></minimax:tool_call> </parameter", '"</invoke></minimax:tool_call> </parameter"'),
            ("map", r'{"x": "</parameter>\"<"}', r'{"x": "</parameter>\"<"}'),
            *_PLAIN_TEXTS,
            *_VALUES,
        ]
    ),
    Output(_minimax(_invoke("weather", ("city", "Oslo"))), None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        f"I will look.\n\n{_minimax(_invoke('add', ('a', '5')), _invoke('say', ('text', 'x')))}\nOne moment.",
        "I will look.\nOne moment.",
        (("add", '{"a": 5}'), _SAID_X),
    ),
    Output(
        _minimax(_invoke("say")) + _minimax(_invoke("un known", ("k", "v"))),
        None,
        (("say", "{}"), ("un known", '{"k": "v"}')),
    ),
    # the model forgets something
    Output(_invoke("say", ("text", "x")) + "so", "so", (_SAID_X,)),
    Output(_minimax(_invoke("say", ("text", "x"))).removesuffix("</minimax:tool_call>"), None, (_SAID_X,)),
    Output('<minimax:tool_call>\n<invoke name="say">\n<parameter name="text">x</invoke>', None, (_SAID_X,)),
    Output(
        '<minimax:tool_call><invoke name="say"><parameter name="text">x',
        None,
        (("say", '{"text": "x'),),
        has_broken_call=True,
    ),
    # no calls: everything is text, character for character
    Output('Use <invoke name="say"> here.', 'Use <invoke name="say"> here.'),
    Output(
        'So: <invoke name="say">\n<parameter name="text">x</parameter> is',
        'So: <invoke name="say">\n<parameter name="text">x</parameter> is',
    ),
    Output(
        '1 < 2 <invoke name="other"> <invoke> <minimax:tool> ', '1 < 2 <invoke name="other"> <invoke> <minimax:tool> '
    ),
    Output("<minimax:tool_call>\nsay()\n</minimax:tool_call>", "<minimax:tool_call>\nsay()\n</minimax:tool_call>"),
    Output('<minimax:tool_call><invoke name="a"b">', '<minimax:tool_call><invoke name="a"b">'),
]


def _glm(name: str, *given: tuple[str, str]) -> str:
    """A call, as the templates of GLM 4.5 and 4.6 write it."""
    lines = [f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in given]
    return f"<tool_call>{name}\n{''.join(lines)}</tool_call>"


GLM45 = [
    *(
        Output(_glm("add", (key, value), ("text", "x")), None, (("add", f'{{"{key}": {json}, "text": "x"}}'),))
        for key, value, json in [
            ("text", "</tool_call> </arg_val", '"</tool_call> </arg_val"'),
            ("map", r'{"x": "</arg_value>\"<"}', r'{"x": "</arg_value>\"<"}'),
            *_PLAIN_TEXTS,
            *_VALUES,
        ]
    ),
    Output(_glm("weather", ("city", "Oslo")), None, (("weather", '{"city": "Oslo"}'),)),
    # as GLM 4.7 writes it, without line ends
    Output(_glm("weather", ("city", "Oslo")).replace("\n", ""), None, (("weather", '{"city": "Oslo"}'),)),
    Output(
        f"\nI will look.\n\n{_glm('add', ('a', '5'))}\n{_glm('say', ('text', 'x'))}\nOne moment.",
        "\nI will look.\nOne moment.",
        (("add", '{"a": 5}'), _SAID_X),
    ),
    Output(_glm("say") + "<tool_call>say</tool_call>", None, (("say", "{}"), ("say", "{}"))),
    Output(_glm("un.known", ("a key", "v")), None, (("un.known", '{"a key": "v"}'),)),
    # the model forgets something
    Output(_glm("say", ("text", "x")).removesuffix("</tool_call>"), None, (_SAID_X,)),
    Output("<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>x\n</tool_call>", None, (("say", r'{"text": "x\n"}'),)),
    Output(
        "<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>x", None, (("say", '{"text": "x'),), has_broken_call=True
    ),
    Output(
        "<tool_call>say<arg_key>text</arg_key>so", "<arg_key>text</arg_key>so", (("say", "{}"),), has_broken_call=True
    ),
    # no calls: everything is text, character for character
    Output("<tool_call>\nadd(1, 2)\n</tool_call>", "<tool_call>\nadd(1, 2)\n</tool_call>"),
    Output('<tool_call>{"name": "add"}</tool_call>', '<tool_call>{"name": "add"}</tool_call>'),
    Output("<tool_call>so it is</tool_call> <arg_key>", "<tool_call>so it is</tool_call> <arg_key>"),
    Output("<tool_call></tool_call> 1 < 2", "<tool_call></tool_call> 1 < 2"),
    Output("<tool_call>say\n", "<tool_call>say\n"),
]
