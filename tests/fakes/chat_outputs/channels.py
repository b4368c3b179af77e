"""Outputs in the channels of gpt-oss."""

from tests.fakes.chat_outputs.output import Output

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
    Output(f'{_channel_call("add", """{"a": 1""")}<|call|>{_FINAL}so', "so", (("add", '{"a": 1}'),)),
    Output(f'{_channel_call("say", """{"text": "x""")}', None, (("say", '{"text": "x'),), has_broken_call=True),
    # no channels: everything is text, character for character
    Output('Hello! < <| {"name": "add"} [1] ', 'Hello! < <| {"name": "add"} [1] '),
    Output(" total <tool_call> ", " total <tool_call> "),
]

# Where no tool may be called.
HARMONY_ALONE = [
    Output(f"{_FINAL}Hello.", "Hello."),
    Output(f"{_ANALYSIS}Hm.{_NEXT}{_FINAL}Yes.", "Yes.", (), "Hm."),
    Output(
        "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|message|>Then.<|return|>", "First.\nThen."
    ),
]
