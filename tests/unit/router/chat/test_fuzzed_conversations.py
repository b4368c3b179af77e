"""Any conversation gives a prompt or a refusal, whatever its roles, contents and calls are."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.errors import RequestError

from tests.fakes.chat_families import Family

FAMILIES = ("llama3", "qwen3", "mistral", "gemma3", "deepseek_v31")
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    [
        "<|im_end|>",
        "<|eot_id|>",
        "[/INST]",
        "<think>",
        "</think>",
        "{{ 7 * 7 }}",
        "{% for %}",
        "\ufdd1",
        "<end_of_turn>",
    ]
)
CONTENTS = TEXTS | st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), max_size=3)
CALLS = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXTS, "arguments": TEXTS | st.sampled_from(['{"a": 1}', "{}", "[]", "{", '{"a": {"a": []}}'])}
        ),
    }
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "nobody", "", "<|im_start|>"])},
    optional={"content": CONTENTS, "tool_calls": st.lists(CALLS, max_size=2), "tool_call_id": TEXTS, "name": TEXTS},
)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_conversation_gives_a_prompt_or_a_refusal(name: str) -> None:
    family = Family(name)

    @settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @given(messages=st.lists(MESSAGES, max_size=5), goes_on=st.sampled_from([None, True, False]))
    def check(messages: list[dict[str, Any]], goes_on: bool | None) -> None:
        refusal, pieces = None, ()
        try:
            pieces = family.pieces(messages=messages, continue_final_message=goes_on)
        except RequestError as error:
            refusal = str(error)
        assert refusal != ""
        assert all(isinstance(piece, str) for piece in pieces)

    check()
