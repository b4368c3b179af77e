"""Outputs whose calls are objects of JSON behind a tag."""

from tests.fakes.chat_outputs.output import Output

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
    Output('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call> so', "so", (("add", '{"a": 1}'),)),
    Output('<tool_call>{"name": "add", "arguments": {"a": [{"b": 1', None, (("add", '{"a": [{"b": 1}]}'),)),
    # the model breaks off inside a value, or writes what is no JSON
    Output(
        '<tool_call>{"name": "say", "arguments": {"text": "x</tool_call>',
        None,
        (("say", '{"text": "x</tool_call>'),),
        has_broken_call=True,
    ),
    Output(
        '<tool_call>{"name": "add", "arguments": {"a": 01}}</tool_call>'
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        None,
        (("add", '{"a": 01}'), ("add", '{"a": 1}')),
        has_broken_call=True,
    ),
    Output(
        '<tool_call>{"name": "add", "arguments": {"a": ]</tool_call> so',
        "so",
        (("add", '{"a": ]'),),
        has_broken_call=True,
    ),
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

MINIMAX_M1 = [
    Output('<tool_calls>\n{"name": "add", "arguments": {"a": 1}}\n</tool_calls>', None, (("add", '{"a": 1}'),)),
    Output(
        'I look.\n<tool_calls>\n{"name": "add", "arguments": {"a": 1}}\n'
        '{"name": "say", "arguments": {"text": "</tool_calls>\\n{"}}\n</tool_calls> Done.',
        "I look. Done.",
        (("add", '{"a": 1}'), ("say", '{"text": "</tool_calls>\\n{"}')),
    ),
    Output(
        '<tool_calls>[{"name": "add", "arguments": {}}, {"name": "unknown", "arguments": {}}]</tool_calls>',
        None,
        (("add", "{}"), ("unknown", "{}")),
    ),
    Output('<tool_calls>\n{"name": "add", "arguments": {"a": 1}}', None, (("add", '{"a": 1}'),)),
    Output(
        '<tool_calls>\nadd(1)\n</tool_calls> <tool_call> {"name"',
        '<tool_calls>\nadd(1)\n</tool_calls> <tool_call> {"name"',
    ),
]
