"""Refuses fields of other servers that would bind the answer and that this server does not have."""

from collections.abc import Mapping

from textmill_router.api.openai.types import OpenAIBody
from textmill_router.errors import ValidationFailed

# For each field the value that asks for nothing, as null does, and a sentence that says what a client can do instead.
_OF_ALL: Mapping[str, tuple[object, str]] = {
    "custom_logit_processor": ("", "the server runs no code of clients"),
    "guided_whitespace_pattern": ("", "the blanks between two JSON tokens are fixed"),
    "logits_processors": ([], "the server runs no code of clients"),
    "no_stop_trim": (False, "use `include_stop_str_in_output`"),
    "return_tokens_as_token_ids": (False, "use `logprobs`, whose entries have the text and the bytes of a token"),
    "skip_special_tokens": (True, "special tokens are never part of the answer"),
    "structural_tag": ("", "use `tools`, `response_format` or `grammar`"),
    "use_beam_search": (False, "use `n` or `best_of`"),
}
_OF_CHAT: Mapping[str, tuple[object, str]] = {
    "best_of": (1, "use `n`"),
    "chat_template": ("", "the model's own template is used, or that of --tokenizer-config-path"),
    "echo": (False, "put the last message and the answer together"),
    "modalities": (["text"], "this model writes text only"),
    "suffix": ("", "use /v1/completions"),
}


def check_refused(body: OpenAIBody) -> None:
    """Raise ValidationFailed for the first field of the body that asks for something that the server does not have."""
    _check(body, _OF_ALL)


def check_refused_of_chat(body: OpenAIBody) -> None:
    """Raise ValidationFailed as `check_refused` does, and also for the fields that only chats lack."""
    _check(body, _OF_ALL)
    _check(body, _OF_CHAT)


def _check(body: OpenAIBody, fields: Mapping[str, tuple[object, str]]) -> None:
    for name, (nothing, instead) in fields.items():
        value = getattr(body, name)
        if value is not None and value != nothing:
            raise ValidationFailed(f"`{name}` is not supported: {instead}; leave it out", field=name)
