"""The bodies of summarization, translation and text2text-generation on `POST /`."""

from typing import Literal

import msgspec

from textmill_router.api.tgi.types import RequestOptions

Truncation = bool | Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


class SearchFields(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """How `generate` of transformers searches. Fields that are absent have the values of the checkpoint's files."""

    max_length: int | None = None
    min_length: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None


class WritingFields(SearchFields, kw_only=True, frozen=True, gc=False):
    """How the text is written. Fields that are absent have the values of the checkpoint's files."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_time: float | None = None
    num_return_sequences: int | None = None
    seed: int | None = None


class WritingParameters(WritingFields, kw_only=True, frozen=True, gc=False):
    """The `parameters` of a body. Clients put the fields of writing beside the others, or into an inner object."""

    generate_parameters: WritingFields | None = None
    generation_parameters: WritingFields | None = None
    truncation: Truncation | None = None
    clean_up_tokenization_spaces: bool | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None


class WritingBody(msgspec.Struct, frozen=True, gc=False):
    """The body of a call, whose answer is a list with a text for each input."""

    inputs: str | list[str]
    parameters: WritingParameters | None = None
    options: RequestOptions | None = None


class SummaryAnswer(msgspec.Struct, frozen=True, gc=False):
    """The summary of one text."""

    summary_text: str


class TranslationAnswer(msgspec.Struct, frozen=True, gc=False):
    """The translation of one text."""

    translation_text: str


class TextAnswer(msgspec.Struct, frozen=True, gc=False):
    """What the model has made of one text."""

    generated_text: str
