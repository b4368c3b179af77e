"""Outputs with reasoning, and with the calls of Hermes."""

from dataclasses import replace

from tests.fakes.chat_outputs.output import Output

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
