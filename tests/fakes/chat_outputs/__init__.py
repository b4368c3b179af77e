"""Outputs as models write them, each with the message that it is, written by hand from the published formats."""

from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.parsers.tools import (
    command_r,
    deepseek,
    functools,
    generic_json,
    glm4,
    harmony,
    hermes,
    kimi_k2,
    llama3_json,
    minimax,
    mistral,
    pythonic,
    qwen3_coder,
    tool_call_token,
)
from textmill_router.parsers.tools.tool_format import ToolFormat

from tests.fakes.chat_outputs.channels import HARMONY, HARMONY_ALONE
from tests.fakes.chat_outputs.framed_calls import DEEPSEEK, KIMI_K2
from tests.fakes.chat_outputs.output import TOOLS, Output, parse_whole
from tests.fakes.chat_outputs.python_calls import PYTHONIC
from tests.fakes.chat_outputs.tagged_json import COMMAND_R, HERMES, MINIMAX_M1, MISTRAL, TOOL_CALL_TOKEN
from tests.fakes.chat_outputs.thoughts import MISTRAL_THINK, THINK
from tests.fakes.chat_outputs.untagged_json import FUNCTOOLS, JSON, LLAMA3_JSON
from tests.fakes.chat_outputs.written_parameters import GLM45, MINIMAX_M2, QWEN3_CODER

__all__ = ["ALL", "TOOLS", "Output", "parse_whole"]

_OF_TOOLS: tuple[tuple[ToolFormat, list[Output]], ...] = (
    (hermes.HERMES, HERMES),
    (llama3_json.LLAMA3_JSON, LLAMA3_JSON),
    (mistral.MISTRAL, MISTRAL),
    (generic_json.GENERIC_JSON, JSON),
    (command_r.COMMAND_R, COMMAND_R),
    (functools.FUNCTOOLS, FUNCTOOLS),
    (tool_call_token.PHI4_MINI, TOOL_CALL_TOKEN),
    (tool_call_token.GRANITE, TOOL_CALL_TOKEN),
    (minimax.MINIMAX_M1, MINIMAX_M1),
    (minimax.MINIMAX_M2, MINIMAX_M2),
    (glm4.GLM4, GLM45),
    (qwen3_coder.QWEN3_CODER, QWEN3_CODER),
    (pythonic.PYTHONIC, PYTHONIC),
    (deepseek.DEEPSEEK_V3, DEEPSEEK),
    (deepseek.DEEPSEEK_V31, DEEPSEEK),
    (kimi_k2.KIMI_K2, KIMI_K2),
    (harmony.HARMONY, HARMONY),
)
ALL: list[tuple[ToolFormat, ReasoningFormat | None, Output]] = [
    *((tools, None, output) for tools, outputs in _OF_TOOLS for output in outputs),
    *((harmony.HARMONY, ReasoningFormat.HARMONY, output) for output in HARMONY_ALONE),
    *((hermes.HERMES, ReasoningFormat.THINK, output) for output in THINK),
    *((hermes.HERMES, ReasoningFormat.MISTRAL, output) for output in MISTRAL_THINK),
]
