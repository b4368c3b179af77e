"""Random values, written as Python or as Qwen3-Coder's template writes them, are read as themselves."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.tools import glm4, minimax, pythonic, qwen3_coder
from textmill_router.parsers.tools.tool_format import ToolFormat, ToolSpec

from tests.fakes.chat_outputs import parse_whole

NUM_CALLS = 1000
SIGNS = "ab \n\t'\"\\<>/{}[]()=,é東\N{GRINNING FACE}\u2028%$#"
TOOL = ToolSpec(
    "act",
    {"type": "object", "properties": {"t": {"type": "string"}, "m": {"type": "object"}, "l": {"type": "array"}}},
)


def any_text(source: random.Random) -> str:
    return "".join(source.choice(SIGNS) for _ in range(source.randint(0, 12)))


def any_value(source: random.Random, depth: int) -> Any:
    plain = [None, True, False, source.randint(-(10**6), 10**6), source.random() * 10.0 ** source.randint(-8, 8)]
    if not depth or source.random() < 0.6:
        return source.choice([*plain, any_text(source)])
    values = [any_value(source, depth - 1) for _ in range(source.randint(0, 3))]
    return values if source.random() < 0.5 else {any_text(source): value for value in values}


def as_python(arguments: dict[str, Any]) -> str:
    return f"[act({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"


def as_texts(arguments: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}


def as_glm(arguments: dict[str, Any]) -> str:
    given = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n" for key, text in as_texts(arguments).items()
    )
    return f"<tool_call>act\n{given}</tool_call>"


def as_minimax(arguments: dict[str, Any]) -> str:
    given = "".join(f'<parameter name="{key}">{text}</parameter>\n' for key, text in as_texts(arguments).items())
    return f'<minimax:tool_call>\n<invoke name="act">\n{given}</invoke>\n</minimax:tool_call>'


def as_template(arguments: dict[str, Any]) -> str:
    texts = as_texts(arguments)
    given = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function=act>\n{given}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("tools", "write"),
    [
        (pythonic.PYTHONIC, as_python),
        (qwen3_coder.QWEN3_CODER, as_template),
        (glm4.GLM4, as_glm),
        (minimax.MINIMAX_M2, as_minimax),
    ],
    ids=["pythonic", "qwen3_coder", "glm45", "minimax_m2"],
)
def test_written_arguments_are_read_as_they_were(tools: ToolFormat, write: Callable[[dict[str, Any]], str]) -> None:
    source = random.Random(5)
    for _ in range(NUM_CALLS):
        arguments = {
            "t": any_text(source),
            "m": {any_text(source): any_value(source, 2)},
            "l": [any_value(source, 3) for _ in range(source.randint(0, 2))],
        }
        message = parse_whole(ChatParser(tools, None, [TOOL]), write(arguments), was_cut=False)
        [call] = message.tool_calls
        assert (message.content, json.loads(call.arguments)) == (None, arguments), write(arguments)
