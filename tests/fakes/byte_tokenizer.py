"""Makes a small byte-level tokenizer: a token id is a byte's value, with two special tokens and optional merges."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

BEGIN = "<|begin|>"
END = "<|end|>"
BEGIN_ID = 256
END_ID = 257
FIRST_MERGE_ID = 258
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def alphabet() -> list[str]:
    """Return the character that stands for each byte in byte-level vocabularies, by byte."""
    printable = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def make_byte_tokenizer(merges: Sequence[tuple[bytes, bytes]] = (), add_begin: bool = True) -> tokenizers.Tokenizer:
    """Return the tokenizer.

    `merges` are pairs of byte strings that become one token each, in order, with ids from FIRST_MERGE_ID. With
    `add_begin` prompts start with BEGIN.
    """
    characters = alphabet()

    def spell(data: bytes) -> str:
        return "".join(characters[byte] for byte in data)

    vocabulary = {character: byte for byte, character in enumerate(characters)}
    vocabulary |= {BEGIN: BEGIN_ID, END: END_ID}
    vocabulary |= {spell(left + right): FIRST_MERGE_ID + index for index, (left, right) in enumerate(merges)}
    pairs = [(spell(left), spell(right)) for left, right in merges]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    if add_begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, BEGIN_ID)]
        )
    return tokenizer


def write_byte_tokenizer(folder: Path, merges: Sequence[tuple[bytes, bytes]] = (), add_begin: bool = True) -> Path:
    """Write tokenizer.json and tokenizer_config.json into the folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_byte_tokenizer(merges, add_begin).save(str(folder / "tokenizer.json"))
    config = {"bos_token": BEGIN, "eos_token": END, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
