"""Outputs whose calls are objects of JSON in the midst of text, without a tag."""

from tests.fakes.chat_outputs.output import Output

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

JSON = [
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
        (("say", '{"text": "\ufffdx\ufffd\ufffd"}'),),
    ),
    Output('{"function": {"function": {"name": "add"}}}', '{"function": {"function": {"name": "add"}}}'),
    Output('{"name": "say", "arguments": " \\n {\\"text\\": 1}"}', None, (("say", '{"text": 1}'),)),
    Output('[{"name": "add", "arguments": {}}, {"x": 1}]', ', {"x": 1}]', (("add", "{}"),)),
]

# As fences and prose stand around a call that no tag marks: they are text, and so is half a call that prose quotes.
_AROUND_UNTAGGED = [
    ('Write {"name": "add", "arguments": {"a": 1 as above.', ()),
    ('Write `{"name": "add", "arguments": {"a": ` and then a number.', ()),
    ('So: {"name": "add", "arguments": {"a": 1 and }} is none.', ()),
    ('So: {"name": "add", "arguments": {\'a\': 1}} is none.', ()),
]
JSON += [Output(text, text, calls) for text, calls in _AROUND_UNTAGGED]
LLAMA3_JSON += [Output(text, text, calls) for text, calls in _AROUND_UNTAGGED]
JSON += [
    # at the start of the answer a call is given on as it comes
    Output('{"name": "say", "arguments": {"text": "x', None, (("say", '{"text": "x'),), has_broken_call=True),
    Output('{"name": "add", "arguments": {"a": 1', None, (("add", '{"a": 1}'),)),
    Output('```\n{"name": "say", "arguments": "{\\"text\\": 1}"}\n```', "```\n```", (("say", '{"text": 1}'),)),
    Output('So: {"name": "say"}', "So:", (("say", "{}"),)),
    Output('So: {"arguments": {"a": 1}, "name": "add"}.', "So:.", (("add", '{"a": 1}'),)),
]

FUNCTOOLS = [
    Output('functools[{"name": "add", "arguments": {"a": 1}}]', None, (("add", '{"a": 1}'),)),
    Output(
        ' functools[{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {"text": "]functools["}}]',
        None,
        (("add", '{"a": 1}'), ("say", '{"text": "]functools["}')),
    ),
    Output('I look. functools[{"name": "unknown", "arguments": {}}]\nDone.', "I look.\nDone.", (("unknown", "{}"),)),
    Output('functools[{"name": "add", "arguments": {"a": 1}}', None, (("add", '{"a": 1}'),)),
    Output("from functools import partial; functools.reduce", "from functools import partial; functools.reduce"),
    Output("use functools[0], functools [1], functools{}", "use functools[0], functools [1], functools{}"),
    Output('Write functools[{"name": "add", "arguments": {"a"', 'Write functools[{"name": "add", "arguments": {"a"'),
    Output("if f of func", "if f of func"),
]
