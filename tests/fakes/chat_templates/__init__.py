"""Chat templates that were written from the published formats, and a byte tokenizer that has their tokens."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from tests.fakes.byte_tokenizer import make_byte_tokenizer

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
# Merges of bytes, so that a prompt that is encoded in pieces gets other ids where it is cut in the wrong place.
MERGES = ((b"i", b"n"), (b"<", b"|"), (b"|", b">"), (b"\n", b"\n"), (b" ", b"t"), (b":", b" "), (b"e", b"r"))
BEGIN, END = "<s>", "</s>"
DEEPSEEK_TAGS = tuple(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end"))
COMMAND_ROLES = ("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")
COMMAND_TAGS = tuple(f"<|{edge}_{part}|>" for part in ("THINKING", "ACTION", "RESPONSE") for edge in ("START", "END"))
KIMI_TAGS = tuple(
    f"<|tool_call{part}|>" for part in ("s_section_begin", "_begin", "_argument_begin", "_end", "s_section_end")
)
GLM_TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
TOOL_CALL_TAGS = ("<|tool_call|>", "<|/tool_call|>", "<|tool_response|>")
_FAMILY_TOKENS = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    "qwen2_5": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "qwen3_coder": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "pythonic": ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>"),
    "qwen2_vl": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "mistral": ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "gemma2": ("<start_of_turn>", "<end_of_turn>"),
    "gemma3": ("<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "zephyr": ("<|system|>", "<|user|>", "<|assistant|>"),
    "gpt_oss": ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"),
    "deepseek_v31": ("<｜User｜>", "<｜Assistant｜>", *DEEPSEEK_TAGS),
    "phi4_mini": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", *TOOL_CALL_TAGS),
    "functools": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_response|>"),
    "glm45": ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "kimi_k2": ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", *KIMI_TAGS),
    "minimax_m1": ("<beginning_of_sentence>", "<end_of_sentence>"),
    "minimax_m2": ("]~!b[", "]~b]", "[e~["),
    "granite": ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
    "command_r": ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *COMMAND_ROLES, *COMMAND_TAGS),
    "helpers": (),
}
# Added tokens that are not marked as special, as the published vocabularies have them.
_TOOL_TAGS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>")
_MARKUP_TOKENS = {
    "qwen2_5": _TOOL_TAGS,
    "qwen3": (*_TOOL_TAGS, "<tool_response>", "</tool_response>", "<think>", "</think>"),
    "qwen3_coder": (*_TOOL_TAGS, "<tool_response>", "</tool_response>"),
    "glm45": (*GLM_TAGS, "<tool_response>", "</tool_response>", "<think>", "</think>"),
    "minimax_m2": ("<minimax:tool_call>", "</minimax:tool_call>"),
    "llama3": ("<|reserved_special_token_0|>",),
}
# Added tokens that stand for ordinary text.
ORDINARY_TOKENS = ("<b>", "</b>", "\n\n\n", "    ")


def template_source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


def special_texts(name: str) -> tuple[str, ...]:
    """Return the special tokens of the family's vocabulary."""
    return (BEGIN, END, *_FAMILY_TOKENS[name])


def markup_texts(name: str) -> tuple[str, ...]:
    """Return the tokens of the family's vocabulary that are markup and not special."""
    return _MARKUP_TOKENS.get(name, ())


def make_family_tokenizer(name: str) -> tokenizers.Tokenizer:
    """Return a byte-level tokenizer with some merges and the family's added tokens, which adds no token to a text."""
    tokenizer = make_byte_tokenizer(MERGES, add_begin=False)
    tokenizer.add_special_tokens(list(special_texts(name)))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*markup_texts(name), *ORDINARY_TOKENS)])
    return tokenizer
