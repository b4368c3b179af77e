"""Outputs whose calls are objects of JSON behind a header between tags."""

from tests.fakes.chat_outputs.output import Output


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
    Output(
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1 so',
        None,
        (("add", '{"a": 1 so'),),
        has_broken_call=True,
    ),
    Output('<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": [1', None, (("add", '{"a": [1]}'),)),
    Output('<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": [1<｜tool▁call▁end｜> so', "so", (("add", '{"a": [1]}'),)),
    Output(
        '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": [<1<｜tool▁call▁end｜> so',
        "so",
        (("add", '{"a": [<1'),),
        has_broken_call=True,
    ),
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


def _kimi(*calls: tuple[str, str]) -> str:
    """A section of calls, each with its id, as the published templates write them."""
    written = [
        f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
        for call_id, arguments in calls
    ]
    return f"<|tool_calls_section_begin|>{''.join(written)}<|tool_calls_section_end|>"


_SAID = '{"text": "<|tool_call_end|> \\" ```"}'
KIMI_K2 = [
    Output(_kimi(("functions.add:0", '{"a": 1}')), None, (("add", '{"a": 1}'),), ids=("functions.add:0",)),
    Output(
        f"I look.\n{_kimi(('functions.add:3', '{}'), ('functions.say:4', _SAID))} Done.",
        "I look. Done.",
        (("add", "{}"), ("say", _SAID)),
        ids=("functions.add:3", "functions.say:4"),
    ),
    Output(_kimi(("functions.un.known:12", "{}")), None, (("un.known", "{}"),), ids=("functions.un.known:12",)),
    # the model leaves something out, or writes one id twice
    Output(_kimi(("add", '{"a": 1}')), None, (("add", '{"a": 1}'),)),
    Output(_kimi(("add:5", '{"a": 1}')), None, (("add", '{"a": 1}'),), ids=("add:5",)),
    Output(
        _kimi(("functions.add:0", '{"a": 1}'), ("functions.add:0", '{"a": 2}')),
        None,
        (("add", '{"a": 1}'), ("add", '{"a": 2}')),
        ids=("functions.add:0", "call_0"),
    ),
    Output(_kimi(("functions.add:0", "")), None, (("add", "{}"),), ids=("functions.add:0",)),
    Output(
        _kimi(("functions.add:0", '{"a": 1')).removesuffix("<|tool_calls_section_end|>"),
        None,
        (("add", '{"a": 1}'),),
        ids=("functions.add:0",),
    ),
    # no calls
    Output(
        "a < b <|tool_calls <|tool_call_end|> functions.add:0", "a < b <|tool_calls <|tool_call_end|> functions.add:0"
    ),
    Output(
        "<|tool_calls_section_begin|> so <|tool_call_begin|>add(1)",
        "<|tool_calls_section_begin|> so <|tool_call_begin|>add(1)",
    ),
]
